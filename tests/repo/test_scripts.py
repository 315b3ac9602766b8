"""The two commands, on machines of every kind. Nothing here needs a network."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forked import Forking, forking
from tests.postgres import Folder, Postgres, Server, demoted

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the commands are for a POSIX shell")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout that has no environment yet."""
    return copied(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout whose environment is made: making one takes the longest."""
    folder = copied(tmp_path_factory.mktemp("made"))
    assert venv(folder, PYTHON=quick(folder.parent / "quick")).returncode == 0
    return folder


@pytest.fixture
def with_quick_pip(made: Path) -> Iterator[Path]:
    """Return that checkout while its pip finds everything but one thing, and installs nothing."""
    pip = Path(inside(made, "import sysconfig; print(sysconfig.get_path('purelib'))")) / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()  # or the borrowed one would be found
    (pip / "__main__.py").write_text("import sys; sys.exit('poolkit-no-such-thing' in sys.argv)")
    yield made
    shutil.rmtree(pip)


def copied(parent: Path) -> Path:
    """Copy what the script needs into a folder with a space in its name."""
    folder = parent / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "venv.sh", folder / "scripts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def venv(checkout: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as make does."""
    return subprocess.run(
        ["sh", str(checkout / "scripts" / "venv.sh"), ".venv", *args],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def inside(checkout: Path, code: str) -> str:
    """Run code with the interpreter of the environment."""
    python = checkout / ".venv" / "bin" / "python"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def program(path: Path, text: str) -> None:
    """Write something that can be run."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def quick(path: Path) -> str:
    """Write a Python whose environments borrow its pip: installing one takes the longest."""
    program(
        path,
        f'case "$*" in "-m venv --without-pip "*) ;; "-m venv "*) shift 2\n'
        f'exec "{sys.executable}" -m venv --without-pip --system-site-packages "$@" ;; esac\n'
        f'exec "{sys.executable}" "$@"',
    )
    return str(path)


def tools(folder: Path) -> str:
    """Return a PATH with the few programs the script may use, and no Python."""
    folder.mkdir()
    for name in ("sh", "dirname", "cat", "rm", "cksum", "tr", "tail", "ls", "sleep", "mkdir"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return str(folder)


def test_hostile_settings_do_not_reach_the_environment(checkout: Path, tmp_path: Path) -> None:
    """Neither the user's site, nor another target, nor a mask that hides files.

    It is made in a path with a space, and a second call leaves it as it is.
    """
    os.umask(old := os.umask(0o077))
    try:
        os.umask(0o077)
        done = venv(
            checkout,
            PIP_USER="1",
            PIP_TARGET=str(tmp_path / "elsewhere"),
            PIP_PYTHON=str(tmp_path / "no such python"),
            PYTHONPATH=str(tmp_path),
            PYTHONHOME=str(tmp_path),
            PYTHONINSPECT="1",
        )
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stderr
    assert inside(checkout, "import sys; print(sys.prefix)") == str(checkout / ".venv")
    assert inside(checkout, "import pip; print(pip.__file__)").startswith(str(checkout / ".venv"))
    assert not (tmp_path / "elsewhere").exists()
    marker = checkout / ".venv" / "marker"
    marker.touch()
    assert venv(checkout).returncode == 0
    assert marker.exists()


def test_half_made_environment_is_made_anew(checkout: Path, tmp_path: Path) -> None:
    """As one is left behind by an interrupted call."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    program(checkout / ".venv" / "bin" / "python", "exit 1")
    assert venv(checkout, PYTHON=quick(tmp_path / "quick")).returncode == 0
    assert inside(checkout, "print('alive')") == "alive"


def test_moved_environment_is_made_anew(checkout: Path, tmp_path: Path) -> None:
    """It holds absolute paths."""
    python = quick(tmp_path / "quick")
    assert venv(checkout, PYTHON=python).returncode == 0
    moved = checkout.parent / "moved here"
    checkout.rename(moved)
    assert venv(moved, PYTHON=python).returncode == 0
    assert inside(moved, "import sys; print(sys.prefix)") == str(moved / ".venv")


def test_environment_made_by_hand_is_kept(checkout: Path) -> None:
    """With whatever its maker has put there."""
    borrowed = ["--without-pip", "--system-site-packages"]  # quicker
    made = [sys.executable, "-m", "venv", *borrowed, str(checkout / ".venv")]
    subprocess.run(made, check=True, capture_output=True)
    marker = checkout / ".venv" / "marker"
    marker.touch()
    done = venv(checkout)
    assert done.returncode == 0
    assert done.stderr == ""
    assert marker.exists()


def test_environment_of_another_python_is_made_anew(made: Path, tmp_path: Path) -> None:
    """Or the suite would silently run on a Python that was not asked for."""
    marker = made / ".venv" / "marker"
    marker.touch()
    other = tmp_path / "other python"
    program(
        other,
        f'case "$*" in *base_prefix*) echo other ;; *) exec "{quick(tmp_path / "quick")}" "$@" ;; esac',
    )
    assert venv(made, PYTHON=str(other)).returncode == 0
    assert not marker.exists()


def test_named_python_that_does_not_run_is_said(checkout: Path, tmp_path: Path) -> None:
    """And another is taken."""
    folder = tmp_path / "bin"
    path = tools(folder)
    quick(folder / "python3")
    done = venv(checkout, PATH=path, PYTHON="python9")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "PYTHON=python9" in done.stderr


def test_shim_that_does_not_run_is_passed_over(checkout: Path, tmp_path: Path) -> None:
    """A `python3.13` on PATH may only say that it is not installed; one may be too old."""
    folder = tmp_path / "bin"
    path = tools(folder)
    program(folder / "python3.13", "echo 'version not installed' >&2; exit 127")
    program(folder / "python3.12", "exit 1")
    quick(folder / "python3.11")
    done = venv(checkout, PATH=path, PYTHON="")
    assert done.returncode == 0, done.stderr
    assert inside(checkout, "print('alive')") == "alive"


def test_newest_interpreter_on_path_is_preferred(checkout: Path, tmp_path: Path) -> None:
    """Of the supported ones, whatever `python3` is."""
    folder = tmp_path / "bin"
    path = tools(folder)
    quick(folder / "python3.14")
    program(folder / "python3.13", "echo '3.13 was asked' >&2; exit 1")
    (folder / "python3").symlink_to(sys.executable)
    assert venv(checkout, PATH=path, PYTHON="").returncode == 0
    home = (checkout / ".venv" / "pyvenv.cfg").read_text()
    assert inside(checkout, "print('alive')") == "alive"
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in home


def test_no_interpreter_is_one_clear_line(checkout: Path, tmp_path: Path) -> None:
    """With the remedy."""
    done = venv(checkout, PATH=tools(tmp_path / "bin"), PYTHON="")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.11 or newer" in done.stderr


def test_no_pip_anywhere_is_one_clear_line(checkout: Path, tmp_path: Path) -> None:
    """As on Debian without python3-venv."""
    folder = tmp_path / "bin"
    path = tools(folder)
    program(
        folder / "python3",
        'case "$*" in *--without-pip*) ;; *"-m venv"*|*"-m pip"*) exit 1;; esac\n'
        f'exec "{sys.executable}" "$@"',
    )
    done = venv(checkout, PATH=path, PYTHON="")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "python3-venv" in done.stderr


def test_failed_install_shows_what_pip_said(made: Path) -> None:
    """And is tried again by the next call."""
    for _ in range(2):
        done = venv(made, "--no-index", "poolkit-no-such-thing")
        assert done.returncode == 1
        assert "poolkit-no-such-thing" in done.stderr


def wheel(folder: Path, name: str) -> str:
    """Write a package that needs no network to be installed."""
    path = folder / f"{name}-1-py3-none-any.whl"
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


def test_nothing_is_installed_twice(made: Path, tmp_path: Path) -> None:
    """Neither what was asked for before, nor a part of it."""
    one, two = wheel(tmp_path, "one"), wheel(tmp_path, "two")
    assert "installing" in venv(made, "--no-index", one, two).stderr
    assert venv(made, "--no-index", one, two).stderr == ""
    assert venv(made, "--no-index", two).stderr == ""
    assert inside(made, "import one, two; print('both')") == "both"


def test_what_has_changed_is_installed_anew(with_quick_pip: Path, tmp_path: Path) -> None:
    """Whether pyproject.toml or the constraints; and so is what has changed back."""
    made = with_quick_pip
    constraints = tmp_path / "oldest.txt"
    constraints.write_text("")
    asked = ("-c", str(constraints), "three")
    project = made / "pyproject.toml"
    before = project.read_text()
    assert "installing" in venv(made, *asked).stderr
    project.write_text(before + "# changed\n")
    assert "installing" in venv(made, *asked).stderr
    project.write_text(before)
    assert "installing" in venv(made, *asked).stderr
    constraints.write_text("three==1\n")
    assert "installing" in venv(made, *asked).stderr


def test_interrupted_install_is_begun_again(with_quick_pip: Path) -> None:
    """Even of what had been installed before: it may be half replaced."""
    made = with_quick_pip
    assert venv(made, "four").returncode == 0
    assert venv(made, "four").stderr == ""
    assert venv(made, "poolkit-no-such-thing").returncode == 1
    assert "installing" in venv(made, "four").stderr


PIP = """
import os, pathlib, sys, time
there = pathlib.Path(__file__).parents[1]
if "half" in sys.argv:
    (there / "half").mkdir()
    {half}
if "slow" in sys.argv:
    while not (there / "go on").exists():
        time.sleep(0.01)
"""


def with_pip(checkout: Path, half: str) -> str:
    """Make an environment whose pip is another, which does this after it has unpacked a half."""
    python = quick(checkout.parent / "quick")
    assert venv(checkout, PYTHON=python).returncode == 0
    pip = site(checkout) / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(PIP.replace("{half}", half))
    return python


def site(checkout: Path) -> Path:
    """Return where packages lie."""
    return Path(inside(checkout, "import sysconfig; print(sysconfig.get_path('purelib'))"))


@pytest.mark.parametrize(
    "half", ["os.kill(os.getppid(), 9)", "os.kill(0, 2)", "sys.exit('no space left on device')"]
)
def test_environment_whose_installation_was_cut_off_is_made_anew(checkout: Path, half: str) -> None:
    """By Ctrl-C, by SIGKILL, by a full disk: pip takes for installed what is half unpacked."""
    python = with_pip(checkout, half)
    # This may be run where Ctrl-C is ignored, as in the background.
    start = "import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execvp('sh', ['sh', *sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", start, str(checkout / "scripts" / "venv.sh"), ".venv", "half"],
        env={"PATH": os.environ["PATH"], "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        start_new_session=True,  # a group of its own, as of a terminal's
    )
    assert done.returncode != 0
    assert ("no space left" in done.stderr) == ("no space left" in half)
    assert (site(checkout) / "half").exists()
    done = venv(checkout, PYTHON=python)
    assert (done.returncode, "half made" in done.stderr) == (0, True)
    assert not (site(checkout) / "half").exists()
    assert venv(checkout, PYTHON=python).stderr == ""


def test_number_of_the_interrupted_may_be_another_process_by_now(checkout: Path) -> None:
    """As in a container that was started anew: nobody waits for that one."""
    (checkout / ".venv.busy").write_text(f"{os.getpid()}\n")
    done = venv(checkout, PYTHON=quick(checkout.parent / "quick"))
    assert (done.returncode, done.stderr) == (0, "")
    assert not (checkout / ".venv.busy").exists()


def test_second_call_waits_for_the_first(checkout: Path) -> None:
    """Or one would remove what the other is about to make."""
    python = with_pip(checkout, "")
    command = ["sh", str(checkout / "scripts" / "venv.sh"), ".venv", "slow"]
    environment = {"PATH": os.environ["PATH"], "PYTHON": python}
    with contextlib.ExitStack() as stack:
        calls = [
            stack.enter_context(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        first, second = (call.stderr for call in calls)
        assert first is not None
        assert second is not None
        lines = {first.readline(), second.readline()}
        (site(checkout) / "go on").touch()
        rest = {first.read(), second.read()}
    assert [call.returncode for call in calls] == [0, 0]
    assert {line.split()[1] for line in lines} == {"installing", "waits"}
    assert rest == {""}


def test_path_that_python_makes_no_environment_in_is_said(tmp_path: Path) -> None:
    """In one line: with a line break it would seem to work."""
    for name in ("a:b", "a\nb"):
        (tmp_path / name).mkdir()
        done = venv(copied(tmp_path / name))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "move the clone" in done.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can be somebody else")
def test_environment_of_another_user_is_left_alone() -> None:
    """In one line."""
    folder = Folder("checkout")
    try:
        checkout = copied(folder.path)
        (checkout / ".venv").mkdir()
        for path in (folder.path, checkout, checkout / "scripts", checkout / ".venv"):
            path.chmod(0o755)
        done = subprocess.run(
            ["sh", str(checkout / "scripts" / "venv.sh"), ".venv"],
            env={"PATH": str(programs(folder.path / "bin"))},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **demoted(),
        )
    finally:
        folder.close()
    assert done.returncode == 1
    assert done.stderr == (
        "venv.sh: .venv is another user's: clone poolkit anew, or name another: "
        "VENV=/path/to/one make ...\n"
    )


def programs(folder: Path) -> str:
    """Return a PATH with a Python that is as new as is needed."""
    path = tools(folder)
    program(folder / "python3", "exit 0")
    folder.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("words", "environment", "seen"),
    [
        (["DATABASE_URL=postgresql://u:pa$word@h/d"], {}, "postgresql://u:pa$word@h/d "),
        ([], {"DATABASE_URL": "postgresql://u:pa$word@h/d"}, "postgresql://u:pa$word@h/d "),
        ([], {"LC_ALL": "POSIX"}, " C.UTF-8"),
        ([], {"LC_ALL": "C.UTF-8"}, " C.UTF-8"),
        ([], {"PYTHONINSPECT": "1", "PYTHONOPTIMIZE": "2"}, " "),
    ],
)
def test_make_passes_on_what_it_is_given(
    tmp_path: Path, words: list[str], environment: dict[str, str], seen: str
) -> None:
    """Whole, and without what would change how Python runs."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "venv.sh").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    show = 'echo "$DATABASE_URL $LC_ALL$PYTHONINSPECT$PYTHONOPTIMIZE"'
    program(tmp_path / ".venv" / "bin" / "python", show)
    done = subprocess.run(
        ["make", "--no-print-directory", "demo", *words],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{seen}\n", "")


# -- which interpreters there are ----------------------------------------------------------------


def interpreter(path: Path, said: str) -> None:
    """Write what says of itself that it is this version, as a Python would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    program(path, f'[ "$1" = -I ] && [ "$2" = -c ] && echo "{said} $0"')


def pythons(path: str, **environment: str) -> list[str]:
    """Return what scripts/pythons.sh finds."""
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "pythons.sh")],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def test_interpreters_are_found_on_path_and_in_the_folders_of_pyenv_and_uv(tmp_path: Path) -> None:
    """One of each version, the oldest first; what is on PATH wins, shims that do not run lose."""
    path, pyenv, uv = tools(tmp_path / "bin"), tmp_path / "pyenv", tmp_path / "uv"
    program(tmp_path / "bin" / "python3.13", "echo 'version not installed' >&2; exit 127")
    interpreter(tmp_path / "bin" / "python3.12", "3.12")
    interpreter(pyenv / "versions" / "3.12.1" / "bin" / "python3.12", "3.12")
    interpreter(pyenv / "versions" / "3.13.0" / "bin" / "python3.13", "3.13")
    interpreter(pyenv / "versions" / "3.10.0" / "bin" / "python3.10", "3.10")
    interpreter(uv / "cpython-3.14.2-linux" / "bin" / "python3.14", "3.14")
    interpreter(tmp_path / "bin" / "python3", "3.11")
    found = pythons(path, PYENV_ROOT=str(pyenv), UV_PYTHON_INSTALL_DIR=str(uv))
    assert found == [
        f"3.11 {tmp_path}/bin/python3",
        f"3.12 {tmp_path}/bin/python3.12",
        f"3.13 {pyenv}/versions/3.13.0/bin/python3.13",
        f"3.14 {uv}/cpython-3.14.2-linux/bin/python3.14",
    ]


def test_interpreters_of_other_versions_than_asked_for_are_passed_over(tmp_path: Path) -> None:
    """As a machine of CI has them beside those that are to be tested; words may be lines."""
    path = tools(tmp_path / "bin")
    for version in ("3.11", "3.12", "3.13", "3.14"):
        interpreter(tmp_path / "bin" / f"python{version}", version)
    found = pythons(path, POOLKIT_TEST_PYTHONS="3.12\n3.13\n")
    assert found == [f"{version} {path}/python{version}" for version in ("3.12", "3.13")]


def test_this_interpreter_is_found(tmp_path: Path) -> None:
    """The question is understood by a real one."""
    path = tools(tmp_path / "bin")
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (tmp_path / "bin" / name).symlink_to(sys.executable)
    (found,) = pythons(path)
    assert found.startswith(name.removeprefix("python") + " ")
    assert subprocess.run([found.partition(" ")[2], "-c", ""], check=False).returncode == 0


def test_machine_without_a_python_has_none(tmp_path: Path) -> None:
    """Without HOME, too."""
    assert pythons(tools(tmp_path / "bin")) == []


# -- what CI runs --------------------------------------------------------------------------------


def ci_run(
    tmp_path: Path,
    *versions: str,
    fails: str = "no version",
    has_valgrind: bool = False,
    asked_for: str = "",
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Run .ci/run where make only notes what it was asked for, and fails with one Python."""
    folder = tmp_path / "bin"
    path = tools(folder)
    for name in ("bash", "head", "mktemp"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for version in versions:
        interpreter(folder / f"python{version}", version)
    if has_valgrind:
        program(folder / "valgrind", "exit 1")
    asked = tmp_path / "asked"
    program(
        folder / "make",
        f'echo "$* effort=$POOLKIT_TEST_EFFORT" >>"{asked}"\n'
        f'case "$*" in *"{fails}"*) echo "broken on {fails}"; exit 1 ;; esac',
    )
    done = subprocess.run(
        [str(ROOT / ".ci" / "run")],
        env={"PATH": path, "POOLKIT_TEST_PYTHONS": asked_for},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return asked.read_text().splitlines() if asked.exists() else [], done


def test_ci_runs_the_suite_on_the_oldest_and_the_newest_python(tmp_path: Path) -> None:
    """And says which; the one in between is left alone."""
    asked, done = ci_run(tmp_path, "3.11", "3.12", "3.14")
    assert done.returncode == 0, done.stderr
    (newest,) = (line for line in asked if " test " in line)
    (oldest,) = (line for line in asked if " test-wheel " in line)
    assert f"PYTHON={tmp_path}/bin/python3.14 VENV=.venv-3.14" in newest
    assert f"PYTHON={tmp_path}/bin/python3.11" in oldest
    assert newest.endswith("effort=4")
    assert oldest.endswith("effort=")
    assert "Python 3.11 (" in done.stdout
    assert " and 3.14 (" in done.stdout
    assert "WARNING" not in done.stderr


def test_ci_builds_the_pages_once(tmp_path: Path) -> None:
    """On the newest Python."""
    asked, _ = ci_run(tmp_path, "3.11", "3.14")
    (docs,) = [line for line in asked if " docs " in line]
    assert "VENV=.venv-3.14" in docs


def test_ci_counts_instructions_where_there_is_valgrind(tmp_path: Path) -> None:
    """Of the newest Python, after all tests; elsewhere it says that it does not."""
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    asked, done = ci_run(tmp_path / "with", "3.11", "3.14", has_valgrind=True)
    assert done.returncode == 0, done.stderr
    assert "bench-instructions PYTHON=" in asked[-1]
    assert "python3.14 VENV=.venv-3.14" in asked[-1]
    asked, done = ci_run(tmp_path / "without", "3.11", "3.14")
    assert not any("bench" in line for line in asked)
    assert "no valgrind" in done.stderr


@pytest.mark.parametrize("fails", ["python3.11", "python3.14"])
def test_ci_fails_with_either_python(tmp_path: Path, fails: str) -> None:
    """The other one is run to its end, and what was said is shown."""
    asked, done = ci_run(tmp_path, "3.11", "3.14", fails=fails)
    assert done.returncode != 0
    assert f"broken on {fails}" in done.stdout
    other = "test" if fails.endswith("3.11") else "test-wheel"
    assert any(f" {other} " in line for line in asked)


def test_ci_warns_aloud_when_there_is_one_python_only(tmp_path: Path) -> None:
    """A green run says nothing of the other versions then."""
    asked, done = ci_run(tmp_path, "3.13")
    assert done.returncode == 0, done.stderr
    assert len([line for line in asked if " test " in line]) == 1
    assert "WARNING" in done.stderr


def test_ci_without_a_python_fails_with_one_clear_line(tmp_path: Path) -> None:
    """Nothing is run then."""
    asked, done = ci_run(tmp_path)
    assert done.returncode == 1
    assert asked == []
    assert len(done.stderr.splitlines()) == 1


def test_ci_without_a_python_that_was_asked_for_fails(tmp_path: Path) -> None:
    """Rather than to test another one."""
    asked, done = ci_run(tmp_path, "3.12", "3.14", asked_for="3.12\n3.13\n")
    assert (done.returncode, asked) == (1, [])
    assert "no CPython 3.13 was found here" in done.stderr


def machine(folder: Path, *, user: int = 0, apt_get: str = "") -> str:
    """Return a PATH of a machine with this user and this apt-get."""
    path = tools(folder)
    for name in ("mktemp", "chmod"):
        (folder / name).symlink_to(str(shutil.which(name)))
    program(folder / "id", f"echo {user}")
    if apt_get:
        program(folder / "apt-get", f'echo "$1" >>"{folder}/asked"\n{apt_get}')
    return path


def install_tools(path: str, *tools: str) -> subprocess.CompletedProcess[str]:
    """Ask for a server that this machine does not have, unless its apt-get makes one."""
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "test-tools.sh"), *(tools or ["poolkit-server"])],
        env={"PATH": path, "TEST_TOOLS_POLICY": f"{path}/policy"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Debian asks the policy before it starts a service.
INSTALLS = """
here=${0%/*}
[ "$1" = install ] || exit 0
"$here/policy"
[ $? = 101 ] || : >"$here/started"
: >"$here/poolkit-server"
chmod +x "$here/poolkit-server"
"""


def test_missing_tool_is_installed_and_no_service_is_started(tmp_path: Path) -> None:
    """And a second call finds it there, and says nothing."""
    folder = tmp_path / "bin"
    path = machine(folder, apt_get=INSTALLS)
    done = install_tools(path)
    assert (done.returncode, done.stderr) == (0, "test-tools.sh: installed: poolkit-server\n")
    assert not (folder / "started").exists()
    assert not (folder / "policy").exists()
    done = install_tools(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "asked").read_text() == "install\n"


def test_policy_of_the_machine_is_left_as_it_is(tmp_path: Path) -> None:
    """Who has forbidden services before means it."""
    folder = tmp_path / "bin"
    path = machine(folder, apt_get=INSTALLS)
    program(folder / "policy", "exit 101  # mine")
    assert "installed" in install_tools(path).stderr
    assert "mine" in (folder / "policy").read_text()


def test_missing_lists_of_packages_are_fetched(tmp_path: Path) -> None:
    """As in a fresh container."""
    folder = tmp_path / "bin"
    lists = f'[ "$1" = install ] || : >"{folder}/lists"\n[ -e "{folder}/lists" ] || exit 100'
    done = install_tools(machine(folder, apt_get=lists + INSTALLS))
    assert (done.returncode, done.stderr) == (0, "test-tools.sh: installed: poolkit-server\n")
    assert (folder / "asked").read_text().split() == ["install", "update", "install"]


def test_tool_that_there_is_not_costs_no_other(tmp_path: Path) -> None:
    """It is said which; of the names of chromedriver's package the one that exists is taken."""
    folder = tmp_path / "bin"
    fails = (
        f'echo "$*" >>"{folder}/words"\ncase "$*" in *not-there*) echo "no such"; exit 100;; esac\n'
    )
    path = machine(folder, apt_get=fails + INSTALLS)
    program(folder / "apt-cache", '[ "$2" != chromium-driver ]')
    done = install_tools(path, "not-there", "chromedriver", "poolkit-server")
    assert done.returncode == 0
    assert done.stderr == (
        "test-tools.sh: installed: chromedriver poolkit-server\n"
        "no such\n"
        "test-tools.sh: apt-get failed, for the reason above; not installed: not-there\n"
    )
    words = (folder / "words").read_text()
    assert "chromium-chromedriver" in words
    assert "chromium-driver" not in words


@pytest.mark.parametrize(
    ("user", "apt_get", "says"),
    [
        (0, "", "there is no apt-get"),
        (1000, INSTALLS, "only root may"),
        (0, "echo 'Unable to locate'; exit 100", "Unable to locate"),
    ],
)
def test_what_cannot_be_installed_is_said(
    tmp_path: Path, user: int, apt_get: str, says: str
) -> None:
    """And goes on: the tests say what they lack."""
    done = install_tools(machine(tmp_path / "bin", user=user, apt_get=apt_get))
    assert done.returncode == 0
    assert says in done.stderr
    assert "not installed" in done.stderr
    assert "poolkit-server" in done.stderr


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_demo_says_in_one_sentence_that_the_port_is_taken() -> None:
    """And how to choose another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "demo.py"), str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert "PORT=" in done.stdout


@pytest.mark.parametrize("port", ["eighty", "-1", "99999"])
def test_demo_says_in_one_sentence_that_the_port_is_none(port: str) -> None:
    """No traceback for a slip of the finger."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), port],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert port in done.stdout


def test_demo_interrupted_while_it_starts_says_nothing(tmp_path: Path) -> None:
    """Ctrl-C may come before there is anything to stop."""
    (tmp_path / "uvicorn.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stdout + done.stderr == ""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forking]:
    """Return an interpreter that has imported what the example needs, but for poolkit."""
    with forking("aiosqlite", "asyncpg", "fastapi", "uvicorn") as forks:
        yield forks


@pytest.fixture
def demo_without_database(forks: Forking, tmp_path: Path) -> Callable[[str], str]:
    """Return what runs the demo with a database that it cannot have; the one line that it says."""

    def run(url: str) -> str:
        command = (str(ROOT / "scripts" / "demo.py"), str(free_port()))
        done = forks.run(tmp_path, *command, paths=[ROOT / "src", ROOT], DATABASE_URL=url)
        assert done.returncode == 1
        (line,) = (done.out + done.err).splitlines()
        assert line.startswith("DATABASE_URL names no database to use: ")
        assert "sekret" not in line
        return line

    return run


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mssql://me:sekret@localhost/shop", "the demo speaks SQLite and PostgreSQL"),
        ("mysql://me:sekret@localhost/shop", "the demo speaks SQLite and PostgreSQL"),
        ("mysql+asyncmy://me:sekret@localhost/shop", "the demo speaks SQLite and PostgreSQL"),
        ("redis://:sekret@localhost/0", "the demo speaks SQLite and PostgreSQL"),
        ("postgresql+psycopg://me:sekret@localhost/shop", "sqlite:/// or postgresql://"),
        ("localhost:5432/shop", "it has no scheme with '://'"),
        ("postgresql://me:sek/ret@localhost/shop", "malformed DSN"),
        ("postgresql://me:sekret@localhost:port/shop", "the port is not a number"),
        ("sqlite:////no/such/folder/shop.db", "the directory /no/such/folder does not exist"),
    ],
)
def test_demo_says_in_one_sentence_what_is_wrong_with_the_url(
    demo_without_database: Callable[[str], str], url: str, says: str
) -> None:
    """And shows no password."""
    assert says in demo_without_database(url)


def test_demo_says_in_one_sentence_that_its_own_database_cannot_be_made(
    forks: Forking, tmp_path: Path
) -> None:
    """As where nobody may write."""
    for folder in ("scripts", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "var").touch()  # in the place of the folder
    command = (str(tmp_path / "scripts" / "demo.py"), str(free_port()))
    done = forks.run(tmp_path, *command, paths=[ROOT / "src", tmp_path], DATABASE_URL="")
    (line,) = (done.out + done.err).splitlines()
    assert done.returncode == 1
    assert "There is no DATABASE_URL, and var/example.db cannot be used: FileExistsError" in line


def test_demo_says_in_one_sentence_that_no_server_answers(
    demo_without_database: Callable[[str], str],
) -> None:
    """After it has tried for a few seconds: the server may be starting, too."""
    nobody = f"127.0.0.1:{free_port()}"
    assert "ConnectionRefusedError" in demo_without_database(f"postgresql://me:sekret@{nobody}/x")


def test_demo_says_in_one_sentence_that_there_is_no_such_database(
    demo_without_database: Callable[[str], str], postgres: Postgres
) -> None:
    """In the server's words."""
    url = postgres.dsn("no such shop")
    assert 'database "no such shop" does not exist' in demo_without_database(url)


def test_demo_says_in_one_sentence_that_the_password_is_wrong(
    demo_without_database: Callable[[str], str], own_postgres: Server
) -> None:
    """And not which one was tried."""
    own_postgres.query("CREATE ROLE needs_password")
    own_postgres.query("CREATE ROLE clerk LOGIN PASSWORD 'right' IN ROLE needs_password")
    try:
        line = demo_without_database(own_postgres.dsn(user="clerk", password="sekret"))
    finally:
        own_postgres.query("DROP ROLE clerk")
        own_postgres.query("DROP ROLE needs_password")
    assert 'password authentication failed for user "clerk"' in line


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_demo_says_what_to_try_and_ends_whole(stop: signal.Signals, tmp_path: Path) -> None:
    """After the socket answers, and without a traceback."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), str(port)],
        env={**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path / 'demo.db'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            assert demo.stdout is not None
            said = line = demo.stdout.readline()
            while line and "curl" not in line:
                said += (line := demo.stdout.readline())
            assert f"Its database is {tmp_path / 'demo.db'}." in said
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/items", timeout=10) as response:
                assert response.status == 200
            demo.send_signal(stop)
            _, stderr = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert demo.returncode in (0, -stop)
    assert "Traceback" not in stderr
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("load", ["line?seconds=10", "overload", "unpooled"])
def test_demo_interrupted_during_a_load_says_one_line(
    tmp_path: Path, load: str, times: int
) -> None:
    """The load is ended, too, and nothing is told of what that cuts off."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), str(port)],
        env={**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path / 'demo.db'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            assert demo.stdout is not None
            lines = iter(demo.stdout.readline, "")
            assert any(line.startswith("and in a browser") for line in lines)
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                head = f"POST /loads/{load} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                client.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
                with urllib.request.urlopen(f"{url}/livez", timeout=10) as response:
                    assert response.status == 200  # the load has been read before this
                for _ in range(times):
                    demo.send_signal(signal.SIGINT)
                said, complained = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert (complained, said.split()) in (("", ["Stopped."]), ("", []))
    assert demo.returncode in ((0,) if times == 1 else (0, -signal.SIGINT))


@pytest.mark.parametrize("way", ["closed", "unread", "full", "ascii"])
def test_demo_serves_whatever_becomes_of_what_it_says(tmp_path: Path, way: str) -> None:
    """As in `make demo | head -1`; and it ends without a traceback."""
    port = free_port()
    read, write = os.pipe()
    os.close(read)  # nobody reads
    close = 'exec "$@"' + (" >&-" if way == "closed" else "")
    with (
        Path("/dev/full").open("w") if way == "full" else contextlib.nullcontext() as full,
        subprocess.Popen(
            ["sh", "-c", close, "sh", sys.executable, str(ROOT / "scripts" / "demo.py"), str(port)],
            env={
                **os.environ,
                "DATABASE_URL": f"sqlite:///{tmp_path / 'ü.db'}",
                **({"PYTHONIOENCODING": "ascii"} if way == "ascii" else {}),
            },
            stdout={"unread": write, "full": full}.get(way, subprocess.DEVNULL),
            stderr=subprocess.PIPE,
            text=True,
        ) as demo,
    ):
        os.close(write)
        try:
            while demo.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), 10).close()
                    break
                except ConnectionRefusedError:
                    continue
            demo.send_signal(signal.SIGINT)
            _, stderr = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert stderr == ""
    assert demo.returncode in (0, -signal.SIGINT)


# -- mutants -------------------------------------------------------------------------------------


def test_mutants_that_do_not_compile_are_left_out() -> None:
    """As one without the line that binds a name which is `nonlocal` further down."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "mutants.py"), "_shell/events", "--list"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert "is_observing = False" in done.stdout
    assert "is_observing = True  ->  pass" not in done.stdout
