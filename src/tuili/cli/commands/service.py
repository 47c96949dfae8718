"""`tuili service`: a server that starts with the machine, under systemd."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

_Action = Literal["install", "status", "uninstall"]


class COMMAND_CLASS(TyperCommand):  # noqa: N801
    """Leaves flags it does not know to `serve`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options["context_settings"] = {**(options.get("context_settings") or {}), "ignore_unknown_options": True}
        super().__init__(*arguments, **options)


def command(
    action: Annotated[_Action, typer.Argument(help="What to do.")],
    serve: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SERVE ARGUMENTS]...", help="For install: models and flags of `tuili serve`."),
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="A service of your own, over your own models.")] = False,
    run_as: Annotated[str | None, typer.Option(help="Run as this user, instead of one made up by systemd.")] = None,
    name: Annotated[str, typer.Option(help="Name of the service.")] = "tuili",
    socket: Annotated[
        bool, typer.Option(help="Let systemd hold the port: while the service restarts, connections wait.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the units, change nothing.")] = False,
) -> int:
    """Install, show or remove a systemd service that runs `tuili serve` with as few rights as it needs.

    Keys live in an environment file that only root and the service read. Removing the service keeps models and keys.
    """
    from tuili.cli import service_session
    from tuili.cli.commands import serve as serving
    from tuili.errors import InvalidRequestError

    settings = service_session.ServiceSettings(name=name, user=user, run_as=run_as, has_socket=socket, dry_run=dry_run)

    def out(text: str) -> None:
        typer.echo(text, nl=False)

    if action == "install":
        return service_session.install(settings, serve or (), serving.command, out)
    if serve:
        raise InvalidRequestError(f"{action} takes no more arguments, got {serve[0]!a:.80}")
    return {"status": service_session.status, "uninstall": service_session.uninstall}[action](settings, out)
