"""What an operator may set, read once at start and checked once. Services get values, never the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65_535)]
"""0 takes any free port."""


class SettingsInvalid(Exception):
    """A setting is out of bounds or unknown. The message names it."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of `riskgate serve`. Each may be given as RISKGATE_<NAME> in the environment."""

    data: str
    """Data directory made by `riskgate init`."""
    store: Annotated[str, Meta(pattern=r"^(postgres(ql)?://.*)?$")] = ""
    """DSN of a PostgreSQL database that holds journal, state and customers' keys; empty is the data directory."""
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    """Server processes on the same ports; more than one needs a database, since a file takes one."""
    address: str = "127.0.0.1"
    """Where to listen for calls; anything but loopback is your decision."""
    certificate_port: Port = 7443
    """For callers with a client certificate."""
    key_port: Port = 7444
    """For callers with an API key, over TLS too."""
    metrics_port: Annotated[int, Meta(ge=-1, le=65_535)] = 7445
    """Prometheus over plain HTTP on 127.0.0.1; -1 for none. Of several processes each has the next port."""
    clock: Literal["system", "data"] = "system"
    """`data`: time is what the events say, for importing history. Never for live traffic: codes, locks and grants would
    last for as long as whoever sends events likes. It takes no gateway but `file`."""
    ruleset: str = ""
    """A ruleset file; empty takes the one that comes with the program."""
    waiting_max: Annotated[int, Meta(ge=1, le=100_000)] = 4_096
    """Commands that may wait for the writer before callers are refused."""
    cached_customers: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    """Customers kept in memory, about 1 KiB each."""
    cpu: Annotated[int, Meta(ge=-1, le=4_095)] = -1
    """A processor to stay on; -1 leaves it to the system. The two threads that run Python take turns anyway, and on one
    processor they find their data where they left it: about a fifth less work per decision. Of several processes
    each has the next processor."""
    drain_seconds: Annotated[float, Meta(ge=0, le=600)] = 10.0
    """How long calls in flight may take to finish when the server is told to stop."""
    heads_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = 10.0
    """How often the journal's head is signed and written outside the database."""
    gateway: Literal["file", "webhook", "apprise"] = "file"
    """What brings messages to phones. `file` is for development: a file in the data directory, codes in clear."""
    gateway_url: str = ""
    """Address of the webhook. Never an option, for it may have a token in it."""
    gateway_secrets: str = ""
    """File with the webhook's signing secrets (whsec_…), or with Apprise's addresses ("SMS …/{destination}"), one per
    line."""
    gateway_authorities: str = ""
    """PEM file of the authorities that vouch for the webhook's certificate; empty takes the system's."""
    gateway_seconds: Annotated[float, Meta(ge=0.1, le=10)] = 3.0
    """How long the gateway may take to answer one attempt."""
    gateway_patience_seconds: Annotated[float, Meta(ge=0.1, le=10)] = 5.0
    """How long a code is tried before its caller is told that the gateway is down."""
    message_language: Literal["en", "zh-Hans"] = "en"
    """Of messages for which nobody chose one."""
    rp_id: str = "localhost"
    """Domain that customers' passkeys are bound to. Changing it makes every passkey worthless."""
    rp_name: Annotated[str, Meta(min_length=1, max_length=64)] = "Riskgate"
    """What customers are shown beside it, and in authenticator apps beside their codes."""
    origins: str = "http://localhost:8080"
    """Pages and apps that may use those passkeys, exact and comma-separated: https://… or android:apk-key-hash:…"""
    proof_audience: Annotated[str, Meta(max_length=256)] = "riskgate"
    """`aud` that a signed biometric token must name."""
    platforms: str = "webauthn,android,ios,jose"
    """Kinds of device whose keys are enrolled, comma-separated. What is asked of one kind, another is a way around."""
    attestation: str = ""
    """Platforms, comma-separated, whose keys are refused unless their maker vouches for them: android, ios."""
    guarded_use: bool = False
    """Android keys must be proven to need the user for every use."""
    android_apps: str = ""
    """PACKAGE=SHA256 of the apps whose Android keys are taken, comma-separated; empty means any."""
    android_roots: str = ""
    """File of Google's attestation roots in PEM; empty takes those that come with the program."""
    android_revocations: str = ""
    """File of Google's attestation status list in JSON; empty means that nothing is revoked."""
    apple_app_ids: str = ""
    """TEAMID.bundle.id of the apps whose App Attest evidence is taken, comma-separated."""
    apple_roots: str = ""
    """File of Apple's App Attest root in PEM; empty takes the one that comes with the program."""
    apple_development: bool = False
    """Take App Attest evidence of development builds too."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    process: Annotated[int, Meta(ge=-1, le=63)] = -1
    """Which of several processes this is; set by the one that supervises them."""
    ready_fd: Annotated[int, Meta(ge=-1)] = -1
    """The pipe on which this process tells who supervises it that it serves."""

    @property
    def root(self) -> Path:
        """The data directory."""
        return Path(self.data)


PREFIX: Final = "RISKGATE_"


def as_environment(settings: Settings) -> dict[str, str]:
    """Return the settings as a process that is started with them reads them."""
    return {PREFIX + name.upper(): str(value) for name, value in msgspec.structs.asdict(settings).items()}


_PLACE: Final = re.compile(r" - at `\$\.(\w+)`$")
"""How msgspec says where a value stands."""


def load(given: dict[str, object], environment: dict[str, str]) -> Settings:
    """
    Return the settings: what was given on the command line, over the environment, over the defaults.

    Raises:
        SettingsInvalid: naming the setting that is out of bounds, of the wrong kind, or unknown.
    """
    known = set(Settings.__struct_fields__)
    found: dict[str, object] = {
        name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)
    }
    unknown = sorted(set(found) - known)
    if unknown:
        raise SettingsInvalid(f"unknown setting {PREFIX}{unknown[0].upper()}")
    found.update((name, value) for name, value in given.items() if value is not None)
    try:
        # Not strict: the environment has only strings.
        return msgspec.convert(found, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsInvalid(_named(str(error), given)) from None


def _named(text: str, given: Mapping[str, object]) -> str:
    """Write a fault with the option or the variable that has it in front."""
    place = _PLACE.search(text)
    if place is None:
        return text
    name = place[1]
    where = PREFIX + name.upper() if given.get(name) is None else f"--{name.replace('_', '-')}"
    return f"{where}: {_WORDS.get(name) or _in_words(text[: place.start()], get_type_hints(Settings)[name])}"


_WORDS: Final = {"store": "must begin with postgresql://, or be empty for the directory's own files"}
"""What settings must be whose rule is a pattern."""

_KINDS: Final = {"`int`": "a whole number", "`float`": "a number", "`bool`": "true or false", "`str`": "text"}


def _in_words(fault: str, hint: object) -> str:
    if get_origin(hint) is Literal:
        return f"must be one of {', '.join(get_args(hint))}"
    # What was given was text: all of the environment is.
    wish = fault.partition(", got ")[0].removeprefix("Expected ")
    for kind, words in _KINDS.items():
        wish = wish.replace(kind, words)
    return f"must be {wish}"
