from ...objectives.loss import Loss, over_tokens
from ...objectives.method import method
from ...objectives.responses import Responses


@method("sft", tags=("pointwise", "free"))
def sft(r: Responses) -> Loss:
    """Supervised fine-tuning: the token mean of -log pi over chosen responses, or over demonstrations without pairs.

    On denoising errors it is the usual mean squared error.
    """
    return Loss(nll=over_tokens(-r.chosen().policy))
