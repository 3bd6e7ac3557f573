"""``eventdriven config`` and ``eventdriven completion``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs
import click
from click.shell_completion import ShellComplete, get_completion_class

from eventdriven_sync.cli.options import Command, Group
from eventdriven_sync.cli.render import Column
from eventdriven_sync.cli.session import Session

if TYPE_CHECKING:
    from eventdriven_sync.config import Settings


@attrs.frozen(kw_only=True)
class Setting:
    """A setting in force.

    Attributes:
        value: with passwords and tokens masked.
        source: ``default``, ``environment`` or ``app``.
        variable: the environment variable that can set it.
    """

    name: str
    value: Any
    source: str
    variable: str


SETTING_COLUMNS: tuple[Column[Setting], ...] = (
    Column(title="setting", text=lambda s: s.name),
    Column(title="value", text=lambda s: str(s.value), flexible=True),
    Column(title="source", text=lambda s: s.source),
    Column(title="variable", text=lambda s: s.variable, extra=True),
)


@click.group(cls=Group)
def config() -> None:
    """Settings."""


@config.command("show")
@click.pass_obj
def show_config(session: Session) -> None:
    """Show every setting, its value and where it comes from; secrets are masked."""
    from eventdriven_sync.config import Settings

    settings = session.app_bus().settings if session.app else Settings.from_env()
    found = [_setting(settings, field, app=bool(session.app)) for field in attrs.fields(Settings)]
    session.out.rows(found, SETTING_COLUMNS, empty="There are no settings.")
    for setting in found:
        if setting.source != "environment" and setting.variable in os.environ:
            session.out.warning(f"{setting.variable} is set, and the bus of --app does not use it")


def _setting(settings: Settings, field: attrs.Attribute[Any], *, app: bool) -> Setting:
    from eventdriven_sync.config import redact

    value = getattr(settings, field.name)
    variable = f"EVENTDRIVEN_{field.name.upper()}"
    given = os.environ.get(variable)
    if given is not None and (not app or _same(value, given)):
        source = "environment"
    else:
        source = "default" if value == field.default else "app"
    return Setting(
        name=field.name,
        value=redact(value) if isinstance(value, str) else value,
        source=source,
        variable=variable,
    )


def _same(value: Any, text: str) -> bool:
    try:
        return bool(type(value)(text) == value)
    except ValueError:
        return False


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script of a shell.

    bash: eval "$(eventdriven completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc;
    fish: eventdriven completion fish > ~/.config/fish/completions/eventdriven.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    # Not the shell's own source(): it starts the shell to ask for its version.
    script = ShellComplete.source(found(ctx.find_root().command, {}, "eventdriven", "_EVENTDRIVEN_COMPLETE"))
    session: Session = ctx.obj
    session.out.line(script)
    session.out.document({"shell": shell, "script": script})
