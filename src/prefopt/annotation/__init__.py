"""Numbers about every response of a data set, by models and functions, as columns that training reads."""
