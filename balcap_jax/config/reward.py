"""Settings of the rewards; the comment beside a field is its text in `--help`."""

from dataclasses import dataclass, field
from typing import Literal

from balcap_jax.config.base import Settings
from balcap_jax.config.claim_rivals import ClaimDiffConfig, ClaimsConfig, RubricConfig
from balcap_jax.config.names import did_you_mean
from balcap_jax.config.rivals import (
    RIVALS,
    QAConfig,
    QALengthConfig,
    RewardJudgeConfig,
    changed_setting,
)
from balcap_jax.config.sections import BESIDE_REWARDS, REWARDS
from balcap_jax.errors import UserError

_READ_BY_LENGTH_CONTROL = {"mask_mode": ("auto", "mask"), "linear_coefficient": ("linear",)}


@dataclass(frozen=True)
class RewardConfig(Settings):
    """Rewards of a caption and how its length is kept in bounds."""

    names: tuple[str, ...] = REWARDS  # Rewards of the judge to train on.
    # Rewards of other published methods beside them, such as qa_utility; docs/rivals.md.
    rivals: tuple[str, ...] = ()
    # Rewards of your own beside them, as FILE.py:NAME or MODULE:NAME; docs/rewards.md.
    functions: tuple[str, ...] = ()
    # One weight per reward, in the order of names, then of rivals, then of functions; none given: 1
    # each. A reward of weight 0 is watched and teaches nothing.
    weights: tuple[float, ...] = ()
    # Control of length by rho = length / reference length: "mask" takes the linguistic reward of
    # captions outside [tau_l, tau_u]; "linear" lowers it by |rho - 1|; "none" leaves the length
    # free; "auto": "mask" where the linguistic reward is among the names.
    length_control: Literal["auto", "mask", "linear", "none"] = "auto"
    tau_l: float = 0.5  # Lower bound of rho.
    tau_u: float = 2.0  # Upper bound of rho.
    # Value of a masked reward: 0 ("zero", as in the paper) or no signal ("drop").
    mask_mode: Literal["zero", "drop"] = "zero"
    linear_coefficient: float = 0.5  # Strength of the linear penalty ("linear").
    length_unit: Literal["words", "tokens"] = "words"  # Unit that lengths are counted in.
    # Pointability in the precision of training; without it every true statement counts, commentary
    # as well (an ablation of the paper). Held-out precision has it always.
    pointability: bool = True
    # Value of a reward of rivals whose judge failed: no signal, or 0, as the published codes have
    # it ("zero", to study what that does).
    failure: Literal["no_signal", "zero"] = "no_signal"
    judge: RewardJudgeConfig = field(default_factory=RewardJudgeConfig)
    qa: QAConfig = field(default_factory=QAConfig)
    qa_length: QALengthConfig = field(default_factory=QALengthConfig)
    rubric: RubricConfig = field(default_factory=RubricConfig)
    claims: ClaimsConfig = field(default_factory=ClaimsConfig)
    claim_diff: ClaimDiffConfig = field(default_factory=ClaimDiffConfig)
    room = "reward."

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of all K rewards: those of the judge, then the rivals', then the functions'."""
        functions = (spec.rpartition(":")[2] for spec in self.functions)
        return (*self.names, *self.rival_names, *functions)

    @property
    def rival_names(self) -> tuple[str, ...]:
        """Names of the rewards that `rivals` stands for."""
        return tuple(name for rival in self.rivals for name in RIVALS[rival].rewards)

    @property
    def files(self) -> dict[str, str]:
        """Files that rivals read, by the names of their settings."""
        named = {"reward.qa.file": self.qa.file, "reward.rubric.file": self.rubric.file}
        return {setting: file for setting, file in named.items() if file}

    @property
    def all_weights(self) -> tuple[float, ...]:
        """A weight for each of `all_names`."""
        return self.weights or (1.0,) * len(self.all_names)

    @property
    def control(self) -> Literal["mask", "linear", "none"]:
        """The length control that `length_control` means for these rewards."""
        if self.length_control == "auto":
            return "mask" if "linguistic" in self.names else "none"
        return self.length_control

    def check(self) -> None:
        self._check_rivals()
        self._require(
            len(self.all_names) > 0,
            "names",
            "is empty, and so are reward.rivals and reward.functions",
            f"give some of {', '.join(REWARDS)}, or a function.",
        )
        for name in self.names:
            if name not in REWARDS:
                raise UserError(
                    f"reward.names holds the unknown reward {name!r}, known are "
                    f"{', '.join(REWARDS)}{did_you_mean(name, REWARDS)}"
                )
        for name, own in (("names", self.names), ("rivals", self.rivals)):
            self._require(
                len(set(own)) == len(own), name, "names a reward twice", "name each reward once."
            )
        self._require(
            len(set(self.all_names)) == len(self.all_names),
            "functions",
            "names a reward twice",
            "name each reward once.",
        )
        taken = [name for name in self.all_names if name in BESIDE_REWARDS]
        self._require(
            not taken,
            "functions",
            f"has a reward called {', '.join(taken)}, which is a score of another kind",
            "give the function another name.",
        )
        count = len(self.all_names)
        self._require(
            len(self.all_weights) == count,
            "weights",
            f"must have one weight for each of the {count} rewards {', '.join(self.all_names)}",
            f"set --reward.weights {' '.join(['1'] * count)}.",
        )
        for weight in self.weights:
            self._require(weight >= 0, "weights", "must be finite numbers of at least 0")
        self._require(any(self.all_weights), "weights", "are all 0", "give one reward a weight.")
        self._at_least(0, "tau_l", "linear_coefficient")
        self._require(
            self.tau_l < self.tau_u,
            "tau_l",
            f"must be below reward.tau_u={self.tau_u}",
            "the paper uses --reward.tau-l 0.5 --reward.tau-u 2.",
        )
        self._require(
            self.control == "none" or "linguistic" in self.names,
            "length_control",
            "acts on the linguistic reward, which reward.names does not hold",
            "set --reward.length-control none.",
        )
        self._no_dead_settings("length_control", _READ_BY_LENGTH_CONTROL)
        self._require(
            self.pointability or "precision" in self.names,
            "pointability",
            "acts on the precision reward, which reward.names does not hold",
            "leave it at True.",
        )

    def _check_rivals(self) -> None:
        """Refuses unknown rivals, judges that cannot judge them, and settings that none reads."""
        for name in self.rivals:
            if name not in RIVALS:
                raise UserError(
                    f"reward.rivals holds the unknown reward {name!r}, known are "
                    f"{', '.join(RIVALS)}{did_you_mean(name, RIVALS)}"
                )
            kinds = RIVALS[name].kinds
            self.judge._require(  # noqa: SLF001
                self.judge.kind in ("auto", *kinds),
                "kind",
                f"cannot judge {name}",
                f"set --reward.judge.kind to one of {', '.join(kinds)}.",
            )
        self._require(
            bool(self.rivals) or self.failure == "no_signal",
            "failure",
            "has no effect without reward.rivals",
            "leave it out.",
        )
        rooms = dict.fromkeys(room for rival in RIVALS.values() for room in rival.rooms)
        for room in ("judge", *rooms):
            readers = [name for name, rival in RIVALS.items() if room in (*rival.rooms, "judge")]
            changed = changed_setting(getattr(self, room))
            if changed is not None and not set(readers) & set(self.rivals):
                raise UserError(
                    f"{changed} has no effect without {' or '.join(readers)} in reward.rivals; "
                    "leave it out, or add one of them."
                )
