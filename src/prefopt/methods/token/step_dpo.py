from ...objectives.hyper import Positive
from ...objectives.loss import Loss, compare
from ...objectives.method import method
from ...objectives.responses import Responses
from ...objectives.words import bradley_terry


@method("step-dpo", paper="2406.18629", beta="sum of one step's log-ratios", tags=("step",), surveyed=True)
def step_dpo(r: Responses, *, beta: Positive = 0.1) -> Loss:
    """Step-DPO (eq. 2): -log sigmoid(beta (h_w - h_l)), h = log pi(s)/pi_ref(s) of the first wrong step s alone.

    Both answers begin with the same correct steps, which are the prompt of the next one. `wrong_step` of the data is the
    number of the step (from 1) where the rejected answer goes wrong. A pair that was cut before it is left out.
    """
    step, wrong = r.note("step_index", "R T", dtype="step"), r.note("wrong_step", "P", dtype="step")
    w, l = r.pairs()
    sides = [y.log_ratio.where(step[y.rows] == wrong[:, None]) for y in (w, l)]
    r_w, r_l = (beta * h.sum() for h in sides)
    there = (sides[0].length > 0) & (sides[1].length > 0)
    lost = (~there).sum()
    return Loss(preference=compare(r_w - r_l, bradley_terry, there), rewards=(r_w, r_l), health={"no_wrong_step": lost})
