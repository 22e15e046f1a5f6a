"""`prefopt study`: methods x hyperparameters x seeds on one model and data set, compared under one budget.

config.py   the study as the user writes it
plan.py     the runs that it means, each named by its content, and every check before the first of them
measure.py  what a run is measured by: the same prompts and random numbers for all
work.py     one run: train, measure, keep the numbers
pool.py     runs on worker processes
run.py      the whole study, resumed wherever it was stopped
summary.py  numbers from numbers: what holds over all runs of a grid (pure)
report.py   the table and the page
"""
