"""Supervision: one supervisord a profile, which restarts whatever dies."""

import shlex
import subprocess
import sys
import time
from contextlib import suppress
from itertools import groupby
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport

from local.profiles import REPOSITORY, Profile
from local.programs import GROUPS, Program, programs

SOCKET_PATH_LENGTH_MAX = 90
POLL_S = 0.05
RUNNING = 20
"""supervisord's number for a process that has stayed up."""


class GoingDown(Exception):
    """supervisord has been told to shut down, and answers nothing else any more."""


class Supervision:
    """The supervisord of a profile, running or not."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._socket = profile.run / "supervisor.sock"
        self._pid_file = profile.run / "supervisord.pid"
        self._configuration = profile.conf / "supervisord.conf"
        self._groups = {program.name: program.group for program in programs(profile)}

    def is_there(self) -> bool:
        """Tell whether it runs, be it on its way down."""
        try:
            self._call("supervisor.getState")
        except OSError:
            return False
        except GoingDown:
            pass
        return True

    def is_up(self) -> bool:
        """Tell whether it answers."""
        try:
            self._call("supervisor.getState")
        except (OSError, GoingDown):
            return False
        return True

    def launch(self) -> None:
        """Start it.  What supervisord starts by itself is starting when this returns."""
        assert len(str(self._socket)) <= SOCKET_PATH_LENGTH_MAX, f"{REPOSITORY}: clone it to a shorter path"
        for folder in (self._profile.conf, self._profile.data, self._profile.logs, self._profile.run):
            folder.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text(configuration(self._profile, str(self._socket)))
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._configuration)]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        while not self.is_up():
            time.sleep(POLL_S)

    def shut_down(self) -> None:
        """Stop every process, group by group, then supervisord.  Return when all are gone, whoever stopped them."""
        with suppress(OSError, psutil.NoSuchProcess):  # gone meanwhile
            supervisord = psutil.Process(int(self._pid_file.read_text()))
            with suppress(GoingDown):
                self._call("supervisor.shutdown")
            supervisord.wait()

    def pid(self) -> int:
        """Return supervisord's own pid."""
        return int(self._call("supervisor.getPID"))

    def processes(self) -> dict[str, dict[str, Any]]:
        """Return what supervisord knows of each process, by name: `statename`, `pid`, `start`, `now`."""
        known = self._call("supervisor.getAllProcessInfo")
        return {process["name"]: process for process in known if process["name"] in self._groups}

    def deaths(self) -> dict[str, int]:
        """Return how often each process died by itself or was killed, by name."""
        counts: dict[str, int] = self._call("restarts.counts")
        return dict.fromkeys(self._groups, 0) | counts

    def start_group(self, group: str) -> None:
        """Start what does not run of a group, without waiting for it."""
        self._call("supervisor.startProcessGroup", group, False)  # noqa: FBT003 - an RPC knows no keywords

    def start(self, name: str) -> None:
        """Start a process.  Return when it has stayed up for a second."""
        self._call("supervisor.startProcess", self._full_name(name))

    def stop(self, name: str) -> None:
        """Stop a process as `down` does.  Return when it is gone; nobody restarts it."""
        self._call("supervisor.stopProcess", self._full_name(name))

    def _full_name(self, name: str) -> str:
        assert name in self._groups, f"no process {name!r}: there are {', '.join(self._groups)}"
        return f"{self._groups[name]}:{name}"

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        try:
            # The address is a formality: the transport knows its socket.
            return getattr(ServerProxy("http://127.0.0.1", transport=transport), method)(*arguments)
        except Fault as fault:
            if fault.faultCode == Faults.SHUTDOWN_STATE:
                raise GoingDown from fault
            raise
        finally:
            transport.close()


def configuration(profile: Profile, socket: str) -> str:
    """Return supervisord.conf."""
    all_programs = programs(profile)
    sections = [_section("unix_http_server", {"file": socket, "chmod": "0700"}), _supervisord(profile)]
    sections += [
        _section(f"rpcinterface:{name}", {"supervisor.rpcinterface_factory": factory})
        for name, factory in (
            ("supervisor", "supervisor.rpcinterface:make_main_rpcinterface"),
            ("restarts", "local.restarts:make"),
        )
    ]
    sections += [_group(group, list(members)) for group, members in groupby(all_programs, lambda each: each.group)]
    sections += [_program(profile, program) for program in all_programs]
    return "\n".join(sections)


def _section(name: str, settings: dict[str, object]) -> str:
    lines = [f"{key} = {value}".replace("%", "%%") for key, value in settings.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def _supervisord(profile: Profile) -> str:
    return _section(
        "supervisord",
        {
            "logfile": profile.logs / "supervisord.log",
            "pidfile": profile.run / "supervisord.pid",
            "directory": REPOSITORY,
            "childlogdir": profile.logs,
        },
    )


def _group(name: str, members: list[Program]) -> str:
    programs = ",".join(member.name for member in members)
    return _section(f"group:{name}", {"programs": programs, "priority": GROUPS.index(name) + 1})


def _program(profile: Profile, program: Program) -> str:
    return _section(
        f"program:{program.name}",
        {
            # Whatever happens to supervisord, nothing outlives it: like a power cut, which everything here survives.
            "command": shlex.join(("setpriv", "--pdeathsig", "KILL", "--", *program.command)),
            "directory": program.folder,
            "environment": ",".join(f'{key}="{value}"' for key, value in program.environment.items()),
            "autostart": "true" if program.group == "data" else "false",
            "autorestart": "true",
            "startsecs": 1,
            "stopwaitsecs": program.stop_wait_s,
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": profile.logs / f"{program.name}.log",
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": 2,
        },
    )
