"""Checks of the Hub, of the user's token, and of the access to teachers and student."""

from __future__ import annotations

import dataclasses
from typing import Literal

from huggingface_hub import HfApi, constants, errors, get_token
from huggingface_hub.utils import build_hf_headers, get_session, validate_repo_id

from g2l_plugin.doctor.finding import Finding, gigabytes, ok, problem, warning
from g2l_plugin.encoders.hub_errors import check_token, explain_hub_errors, explain_proxy
from g2l_plugin.encoders.locate import locate_folder, split_revision
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.planning.settings import Model, Settings
from g2l_plugin.runs.model_names import find_source

TIMEOUT = 10.0
"""Seconds to wait for an answer of the Hub."""

_SCHEMES = ("hf-hub", "local-dir", "timm", "eva", "scratch", "demo")


@dataclasses.dataclass(frozen=True)
class Account:
    """What the Hub says of the user's token.

    Attributes:
        state: Whether the Hub answers, and accepts the token; `nobody` has none.
        name: The user's name.
        error: Why the Hub does not answer, or why the token cannot be used.
    """

    state: Literal["user", "nobody", "offline", "unreachable", "rejected"]
    name: str = ""
    error: Exception | None = None


@dataclasses.dataclass(frozen=True)
class Access:
    """Whether a model can be had.

    Attributes:
        model: The model.
        cached: Whether its weights are in the local cache.
        error: Why it cannot be downloaded, and what to do; "" if it can.
        unknown: Whether the Hub did not say.
    """

    model: Model
    cached: bool
    error: str = ""
    unknown: bool = False


def check_hub(settings: Settings) -> list[Finding]:
    """Whether teachers and student can be had."""
    models = dict.fromkeys((*settings.teachers, settings.student))
    here = [model for model in models if model.repo_id is None]
    there = [model for model in models if model.repo_id is not None]
    findings = [check_local(model) for model in here]
    if there:
        account = find_account()
        findings.append(judge_account(account))
        # With a token that it rejects, the Hub opens no model at all.
        if account.state != "rejected":
            findings += [judge_access(find_access(model, account.error)) for model in there]
    return findings


def check_local(model: Model) -> Finding:
    """Judges a model that is not on the Hub by the form of its source, and its files."""
    named, scheme = f"{model.variable}={model.source}", model.source.partition(":")[0]
    try:
        if scheme not in _SCHEMES:
            return problem(
                f"{named} is no source that eva's configs know.",
                f"Set {model.variable}={find_source(model.source)}",
            )
        if scheme in ("local-dir", "demo"):
            locate_folder(model.source, weights=model.pretrained)
            return ok(f"{named} has its files.")
        if scheme == "scratch":
            if model.known is None:
                return problem(f"{named} is unknown.", "`g2l models` lists those from scratch.")
            return ok(f"{named} needs no download.")
    except UserError as error:
        return problem(*_split(str(error)))
    return ok(f"{named}, which is not looked into here.")


def find_account() -> Account:
    """Asks the Hub whose token this is, or without one, whether it answers."""
    if constants.HF_HUB_OFFLINE:
        return Account("offline", error=errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set"))
    try:
        check_token()
        get_session().timeout = TIMEOUT  # the client's own is none
        if get_token() is None:
            get_session().head(constants.ENDPOINT, headers=build_hf_headers(token=False))
            return Account("nobody")
        return Account("user", str(HfApi().whoami().get("name")))
    except UserError as error:
        return Account("rejected", error=error)
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            return Account("rejected", error=error)
        # The Hub limits these questions, and a mirror may not know them.
        return Account("user", "?") if status < 500 else Account("unreachable", error=error)
    except (errors.HTTPError, OSError, ValueError, ImportError) as error:
        return Account("unreachable", error=error)


def judge_account(account: Account) -> Finding:
    """Judges the answer to the question for the account."""
    if account.state == "offline":
        return warning("HF_HUB_OFFLINE is set: models come from the local cache only.")
    if account.state == "rejected":
        if isinstance(account.error, UserError):
            return problem(*_split(str(account.error)))
        return problem(
            "The Hub rejects your token: it is wrong, expired or revoked.",
            "hf auth login, or set HF_TOKEN again; HF_TOKEN goes before what is logged in.",
        )
    if account.state == "unreachable":
        error = account.error
        if isinstance(error, ImportError) and "proxy" in str(error):
            return warning(*_split(explain_proxy(error)))
        return warning(
            f"The Hub ({constants.ENDPOINT}) cannot be reached: {in_one_line(error or '')}.",
            "Check network and proxy (HTTPS_PROXY); for a machine without: HF_HUB_OFFLINE=1",
        )
    if account.state == "nobody":
        return ok("The Hub answers; no token is set, which is enough for open models.")
    name = "the Hub does not say as whom" if account.name == "?" else f"as {account.name}"
    return ok(f"Logged in to the Hub, {name}.")


def find_access(model: Model, unreachable: Exception | None) -> Access:
    """Asks the Hub whether a model can be downloaded.

    Args:
        model: A model on the Hub.
        unreachable: Why the Hub is not asked again; None asks it.
    """
    cached = model.is_cached()
    try:
        source, revision = split_revision(model.source, model.revision)
        with explain_hub_errors(source, revision):
            validate_repo_id(model.repo_id or "")
            if unreachable is not None:
                raise unreachable
            get_session().timeout = TIMEOUT
            HfApi().auth_check(model.repo_id or "")
    except UserError as error:
        cause = error.__cause__
        is_unknown = isinstance(cause, errors.EntryNotFoundError) or (
            type(cause) is errors.HfHubHTTPError and cause.response.status_code in (404, 429)
        )
        return Access(model, cached, str(error), is_unknown)
    return Access(model, cached)


def judge_access(access: Access) -> Finding:
    """Judges the answer to the question for a model; one in the cache needs no access."""
    model = access.model
    named = f"{model.variable}={model.source}"
    if access.cached:
        return ok(f"{named} is in the local cache.")
    if access.unknown:
        return warning(f"{named}: the Hub does not say whether you have access.")
    if access.error:
        fact, advice = _split(access.error)
        if model.variable not in advice:  # the Hub's errors are worded for a teacher
            advice = advice.replace("TEACHER=", f"{model.variable}=")
        return problem(f"{model.variable}: {fact}", advice)
    size = f" of {gigabytes(4 * model.parameters)}" if model.parameters else ""
    return ok(f"{named} is open to you: the run begins with a download{size}.")


def _split(message: str) -> tuple[str, str]:
    """Splits a message into its first sentence, the fact, and the rest, the advice."""
    fact, _, advice = message.partition(". ")
    return f"{fact.removesuffix('.')}.", advice
