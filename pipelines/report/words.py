"""What the data show, in sentences: every number with its interval, and no claim that an interval does not support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aig.pareto import LEAST_SEEDS
from pipelines.front.families import OURS, family_name, way_of
from pipelines.front.names import GOLD, ROLES
from pipelines.front.results import AHEAD, BEHIND, UNDECIDED, Arm, Claim, Difference, Front, StudyResult
from pipelines.report.reading import Run
from pipelines.show.estimates import difference, interval
from pipelines.study.prompts import describe


@dataclass(frozen=True)
class Sentence:
    """A sentence of the report.

    kind: what the interval says: yes, no (the opposite), open (it covers zero), or plain for values without a claim.
    """

    text: str
    kind: str = "plain"
    tag: str = "values"


def claim_sentence(study: StudyResult, claim: Claim) -> Sentence:
    """A claim, or its denial if the interval covers zero or lies on the other side."""
    shown = difference(claim.estimate, claim.by_seed) + (f", {study.scope}" if study.scope else "")
    asserted = _capital(study.statement(claim))
    if not math.isfinite(claim.estimate.value):
        return Sentence(f"{asserted}: not measured.", "open", "not measured")
    if not claim.estimate.known:
        return Sentence(f"{asserted}: {shown}, without an interval.", "open", "no interval")
    if claim.holds:
        return Sentence(f"{asserted}: {shown}.", "yes", "shown")
    denied = f"{_capital(study.statement(claim, denial=_denial(claim)))}: {shown}"
    if claim.estimate.sign:
        return Sentence(f"{denied}, the opposite.", "no", "opposite")
    return Sentence(
        f"{denied}, the interval {'reaches' if 0 in claim.estimate[1:] else 'covers'} zero.", "open", "not shown"
    )


def _denial(claim: Claim) -> str:
    """How to deny a claim that does not hold."""
    return "does not" if claim.estimate.sign else "does not clearly"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def arm_sentences(study: StudyResult) -> list[Sentence]:
    """What is wrong with arms whose images are unsound, and what to know of arms of little precision."""
    sentences = []
    for arm in study.arms:
        if arm.broken:
            text = f"{arm.title}: {arm.broken}. It is shown, on no front and in no hypervolume."
            sentences.append(Sentence(text, "no", "broken"))
        if arm.warning:
            text = f"{arm.title}: {arm.warning}. Another style has little precision too: look at its images. "
            sentences.append(Sentence(f"{text}It takes part.", "open", "warning"))
    return sentences


def against_rivals(differences: Sequence[Difference], families: Sequence[str] = OURS) -> list[Difference]:
    """The differences in which one of the families takes part, each as that family less the other.

    One between two ways of annealing stands once, as it was taken.
    """
    ours = []
    for family in families:
        ours += [d for d in differences if d.a == family]
        ours += [d.flipped for d in differences if d.b == family and d.a not in OURS]
    return ours


_VERDICTS = {AHEAD: ("beats", "yes"), BEHIND: ("loses to", "no")}  # the verb and the kind of a sentence


def verdicts(study: StudyResult, metric: str) -> list[Sentence]:
    """Which ways of annealing have more or less hypervolume than another family on a metric's plane.

    Only what `front` decided: the p-value is adjusted, so an interval may exclude zero and neither be ahead.
    """
    sentences = []
    for d in against_rivals(study.planes[metric].differences):
        if d.verdict in _VERDICTS:
            verb, kind = _VERDICTS[d.verdict]
            subject = " ".join(filter(None, (study.counted(d.a), verb, study.counted(d.b), study.scope)))
            shown = f"{difference(d.estimate, d.by_seed)} in hypervolume, {d.sizes}, adjusted p {d.p_adjusted:.2g}"
            sentences.append(Sentence(f"On {study.role_of(metric)} × diversity {subject}: {shown}.", kind, d.verdict))
    return sentences


def undecided(study: StudyResult) -> list[tuple[str, Difference]]:
    """All other comparisons, each with its plane's reward by its role."""
    planes = ((study.role_of(metric), plane.differences) for metric, plane in study.planes.items())
    return [(role, d) for role, differences in planes for d in against_rivals(differences) if not d.decided]


def undecided_title(study: StudyResult) -> str:
    """How many these are: "37 undecided comparisons"."""
    verdicts = [d.verdict for _, d in undecided(study)]
    open_, without = verdicts.count(UNDECIDED), verdicts.count(None)
    if not open_:
        return f"{without} comparison{'s' * (without != 1)} without a verdict"
    return f"{open_} undecided comparison{'s' * (open_ != 1)}" + (f", {without} without a verdict" if without else "")


def best_arms(study: StudyResult, metric: str) -> Sentence | None:
    """Which arm has the highest mean of a metric that was not trained on, and how annealing's best stands beside it.

    The highest of several means is too high on average (the winner's curse), so this is no claim, and says so.
    """
    measured = [arm for arm in study.arms if math.isfinite(arm.metric(metric).value) and not arm.broken]
    guided = [arm for arm in measured if arm.family in OURS]
    if not guided:
        return None
    best, ours = (max(arms, key=lambda arm: arm.metric(metric).value) for arms in (measured, guided))
    text = f"Highest mean of {study.role_of(metric)}, selected among {len(measured)} arms and so too high on average: "
    text += f"{_arm_name(best)} with {interval(best.metric(metric))}"
    if best is not ours:
        whose = "AIG" if all(way_of(arm.family) in ("aig", "aigw") for arm in guided) else "annealing"
        text += f"; the highest of {whose}'s {len(guided)} is {_arm_name(ours)} with {interval(ours.metric(metric))}"
    ends = [arm for arm in measured if arm.is_end and arm is not best]
    return Sentence("; ".join([text, *(f"{arm.title} has {interval(arm.metric(metric))}" for arm in ends)]) + ".")


def _arm_name(arm: Arm) -> str:
    """An arm's label, with its family unless the label says it."""
    family, label = family_name(arm.family), arm.title
    return label if family.split()[0].lower() in label.lower() else f"{label} ({family})"


def study_sentences(study: StudyResult) -> list[Sentence]:
    """All that is said about a study, most important first, but for what is undecided."""
    sentences = arm_sentences(study) + [claim_sentence(study, claim) for claim in study.claims]
    if not study.plane.differences:
        sentences.append(Sentence(f"{_capital(_NOT_COMPARED)}.", "open", "not measured"))
    sentences += [sentence for metric in study.planes for sentence in verdicts(study, metric)]
    others = [metric for metric in dict.fromkeys((study.held_out, GOLD)) if metric and metric != study.reward]
    return sentences + [best for metric in others if (best := best_arms(study, metric))]


_NOT_COMPARED = "annealing was not compared with another family"
_LONGEST = 28  # words of a headline on families; a longer one counts their rivals


def headline(study: StudyResult) -> str:
    """What each way of annealing beats and loses to on the plane of the study's reward, and how many comparisons are
    undecided."""
    said = _decided(study, study.reward)
    return _capital(said if len(said.split()) <= _LONGEST else _decided(study, study.reward, named=False))


def headline_elsewhere(study: StudyResult) -> list[str]:
    """The same for the planes of rewards that were not trained on, every rival named; empty without verdicts."""
    judged = [metric for metric, plane in study.planes.items() if any(d.verdict for d in plane.differences)]
    others = [metric for metric in judged if metric != study.reward]
    return [f"With {study.role_of(metric)} {_instead([study])}, {_decided(study, metric)}" for metric in others]


def _decided(study: StudyResult, metric: str, named: bool = True) -> str:
    """named: whether rivals are named or counted."""
    differences = against_rivals(study.planes[metric].differences)
    parts = []
    for ours in dict.fromkeys(d.a for d in differences if d.decided):
        outcome = []
        for verdict, (verb, _) in _VERDICTS.items():
            rivals = [d.b for d in differences if (d.a, d.verdict) == (ours, verdict)]
            outcome += [f"{verb} {_rivals(study, rivals, named)}"] if rivals else []
        parts.append(" ".join(filter(None, (study.family(ours), _list(outcome, "and"), study.scope))))
    return _with_the_rest(parts, [d.verdict for d in differences], study.scope)


def _rivals(study: StudyResult, families: Sequence[str], named: bool) -> str:
    if named or len(families) == 1:
        return _list([study.family(family) for family in families], "and")
    return f"{len(families)} others"


def _with_the_rest(parts: Sequence[str], verdicts: Sequence[str | None], scope: str) -> str:
    """What is decided, and how many comparisons are not."""
    undecided, count = verdicts.count(UNDECIDED), f"{len(verdicts)} comparison{'s' * (len(verdicts) != 1)}"
    if parts:
        rest = f"{undecided} other{'s are' if undecided != 1 else ' is'} undecided" if undecided else ""
        return "; ".join(filter(None, (*parts, rest)))
    if undecided:
        return " ".join(filter(None, ("no way to sample is clearly ahead of another", scope, f"({count})")))
    return f"{count} of families ha{'ve' if len(verdicts) > 1 else 's'} no verdict" if verdicts else _NOT_COMPARED


def summary(studies: Sequence[StudyResult], role: str = "proxy") -> str:
    """In how many settings each way of annealing clearly beats another family by a reward, or loses to it."""
    return _capital(_tally(studies, role))


def summaries_elsewhere(studies: Sequence[StudyResult]) -> list[str]:
    """The same for rewards that were not trained on."""
    roles = [role for role in ROLES[1:] if any(study.metric_of(role) for study in studies)]
    return [f"With {role} {_instead(studies)}, {_tally(studies, role)}" for role in roles]


def _tally(studies: Sequence[StudyResult], role: str) -> str:
    """Rivals that a family never clearly beats or loses to are not named."""
    metrics = ((study, study.metric_of(role)) for study in studies)
    compared = [
        (study, d)
        for study, metric in metrics
        for d in (against_rivals(study.planes[metric].differences) if metric else ())
        if d.verdict
    ]
    parts = []
    for ours in dict.fromkeys(d.a for _, d in compared if d.decided):
        own = [(study.family(d.b), d.verdict) for study, d in compared if d.a == ours]
        names, outcome = dict.fromkeys(name for name, _ in own), []
        for verdict, (verb, _) in _VERDICTS.items():
            counts = {name: own.count((name, verdict)) for name in names}
            told = [f"{n} in {k} of {sum(name == n for name, _ in own)}" for n, k in counts.items() if k]
            outcome += [f"{verb} {_list(told, 'and')} settings"] if told else []
        name = max((study.family(ours) for study, d in compared if d.a == ours), key=len)
        parts.append(f"{name} clearly {_list(outcome, 'and')}")
    most = max(len(study.train_seeds) for study in studies)
    few = "" if most >= LEAST_SEEDS else f" ({'two adapters' if most == 2 else 'one adapter'} in each setting)"
    return _with_the_rest(parts, [d.verdict for _, d in compared], "") + (few if compared else "")


def _instead(studies: Sequence[StudyResult]) -> str:
    """Where another reward stands; without training there is no proxy whose place it could take."""
    return "in the proxy's place" if any(study.trained for study in studies) else "on the axis of rewards"


def tuning_headline(study: StudyResult) -> str:
    """One sentence on tuning: which claims hold and which do not; empty if none has an interval."""
    known = [claim for claim in study.claims if claim.estimate.known]
    holds = [study.statement(claim, difference=False) for claim in known if claim.holds]
    fails = [study.statement(claim, _denial(claim), difference=False) for claim in known if not claim.holds]
    parts = [_list(statements, "and") for statements in (holds, fails) if statements]
    return _capital(", but ".join(parts)) + (f" {study.scope}" if parts and study.scope else "")


_EVERY_WEIGHT = (
    "AIG on every KL weight has the schedules on the adapter of each KL weight, 0 included, as the published protocol "
    "sweeps them, and pays for all of these trainings. The KL-tuned models themselves are not in it but are its rival: "
    "a family that contains another cannot fall behind it."
)

_BEYOND = (
    "Annealed extrapolation is a schedule whose weight exceeds 1, beyond the tuned model. That one weight above 1 acts "
    "like a smaller KL weight is RLG's (arXiv 2508.21016). On every KL weight it counts the trainings that its arms "
    "use and the unregularized one, an end point of every family."
)
_BEST = (
    "Best-of-n draws n images of the base per prompt and seed and keeps the one that the study's own reward ranks "
    "highest: as many images as any other arm, at n times the base's predictions."
)
_WEIGHT_SPACE = (
    "In weight space the LoRA's scale follows the schedule, for one prediction per step; it is another model than the "
    "mix of two predictions, equal up to the square of the change."
)


def caveats(run: Run) -> list[str]:
    """What the intervals cover and what they do not."""
    front = run.front
    every_weight = any(arm.family == "kl-aig" for arm in front.by_name.values())
    texts = [
        f"{_capital(front.no_interval)}, and no verdict." if front.no_interval else None,
        describe(front.prompt_lists),
        f"Intervals are {front.percent}, from a bootstrap over prompts ({front.n_bootstrap} resamples, seed "
        f"{front.seed}), paired over arms: all arms share prompts and noise. They say how results vary with the "
        f"prompts, not with the training: {_training_caveat(front)}",
        "Measures of whole sets of images (distances, precision, recall, density, coverage) have their intervals from "
        "subsets of the prompts instead, since a bootstrap would hold images twice, and those are each other's nearest "
        "neighbours. Arms share the base's noise: their distances to it start under those of independent images (a KID "
        "under zero), and compare with one another, not with those of other studies.",
        "AIG's schedules are those of its published sweep, ImageReFL's combined generation (step:f) among them; one "
        "weight at every step is DeRaDiff's fixed mix, a family of its own.",
        _BEYOND if any(arm.family in OURS and "beyond" in arm.family for arm in front.by_name.values()) else None,
        _BEST if any(arm.candidates for arm in front.by_name.values()) else None,
        _WEIGHT_SPACE if any(arm.space == "weight" for arm in front.by_name.values()) else None,
        _EVERY_WEIGHT if every_weight else None,
        "A hypervolume gains from every further arm of its family by chance alone. So families are compared at equal "
        "size: of the larger one the mean over all its sub-families of the smaller one's size, base and tuned in each.",
        f"A family is ahead or behind only if that holds together with all {front.comparisons} comparisons of this "
        f"report at {front.percent} (Holm's adjustment over every pair of families on every plane of every setting; "
        "one training seed of several is no setting). An interval alone is not adjusted, and claims on tuning are not."
        if front.comparisons
        else None,
        *(f"{label}: the training was {why}." for label, why in run.stopped.items()),
    ]
    return [text for text in texts if text]


def _training_caveat(front: Front) -> str:
    """What is known of other trainings."""
    seeds = sorted({seed for study in front.studies for seed in study.train_seeds})
    most = max(len(study.train_seeds) for study in front.studies)
    if most >= LEAST_SEEDS:
        return (
            f"of {most} training seeds a claim or difference is the mean, each seed's own beside it, and holds for "
            "other trainings too: its interval has both levels, seeds and then prompts."
        )
    if most > 1:
        return f"with {most} training seeds claims and differences are of these adapters alone."
    if seeds:
        return f"there is one training seed ({seeds[0]}), so another training run may differ by more."
    return "how another training of such an adapter would differ is not known here."


def path_note(run: Run) -> str:
    """On how many prompts distances to the base were measured, if not on all; else empty."""
    prompts = (run.config.get("evaluate") or {}).get("path_prompts")
    if prompts is None or prompts >= run.front.prompts:
        return ""
    return f"Distances to the base are means over the first {prompts} prompts."


def sample(front: Front, study: StudyResult) -> str:
    """How many images, prompts and seeds stand behind a study's arms."""
    trainings = max(len(arm.drawn) for arm in study.arms)
    averaged = f" × {trainings} training seeds; the base {min(arm.images for arm in study.arms)}" * (trainings > 1)
    images = max(arm.images for arm in study.arms)
    return f"n = {images} images per arm ({front.prompts} prompts × {front.seeds} seeds{averaged})"


def _list(items: Sequence[str], last: str) -> str:
    return f"{', '.join(items[:-1])} {last} {items[-1]}" if len(items) > 1 else "".join(items)
