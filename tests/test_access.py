"""Who may be spoken to: addresses, tokens, and heads that serve everyone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stabmap.cli import app
from sweeps.access import check_access, check_head, head_url, is_loopback, serves_strangers, token
from sweeps.shipment import ENVIRONMENT, packed, portable
from sweeps.spec import load_spec
from trainables.domain import InputError, UnreachableError

FAR = ("10.1.2.3:6379", "http://10.1.2.3:8265", "https://ray.example.org:443", "head:6379")
NEAR = ("127.0.0.1:6379", "http://localhost:8265", "http://[::1]:8265", "127.9.9.9:1")


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def token_file(path: Path, mode: int = 0o600, text: str = "abc\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


# --------------------------------------------------------------------------- addresses and tokens


def test_this_machine_needs_no_token() -> None:
    for address in (*NEAR, "local", "auto"):
        check_access(address, insecure=False)


@pytest.mark.parametrize("address", FAR)
def test_other_machines_need_token_mode(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law = "a cluster that is not on this machine needs token mode; set RAY_AUTH_MODE=token"
    with pytest.raises(InputError, match=f"RAY_AUTH_MODE = None: {law}"):
        check_access(address, insecure=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(InputError, match=f"RAY_AUTH_MODE = 'disabled': {law}"):
        check_access(address, insecure=False)
    check_access(address, insecure=True)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    check_access(address, insecure=False)


def test_auto_may_be_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    with pytest.raises(InputError, match="needs token mode"):
        check_access("auto", insecure=False)


@pytest.mark.parametrize(
    "address",
    # What looks like this machine, or resolves to it today.
    [
        *("0.0.0.0:1", "localhost.example.org:1", "http://127.1:8265", "http://127.0.0.1.x.org:1"),
        *("http://localhost@10.1.2.3:8265", "http://[::ffff:10.1.2.3]:1", "http://0x7f000001:1"),
    ],
)
def test_only_certain_names_are_this_machine(address: str) -> None:
    assert not is_loopback(address)
    with pytest.raises(InputError):
        check_access(address, insecure=False)


def test_where_the_token_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    with pytest.raises(
        InputError, match=r"there is none in .*auth_token; copy the cluster's token"
    ):
        check_access(FAR[0], insecure=False)
    token_file(tmp_path / ".ray" / "auth_token", text="home")
    check_access(FAR[0], insecure=False)
    assert token() == "home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    with pytest.raises(InputError, match=r"RAY_AUTH_TOKEN_PATH = .*there is none in .*named"):
        check_access(FAR[0], insecure=False)
    for text in ("", " \n"):
        token_file(tmp_path / "named", text=text)
        with pytest.raises(InputError, match="there is none"):
            check_access(FAR[0], insecure=False)
    token_file(tmp_path / "named", text="named\n")
    assert token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert token() == "given"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666, 0o620])
def test_a_token_that_others_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    path = token_file(tmp_path / "named", mode)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    for address in (FAR[0], NEAR[0]):
        with pytest.raises(InputError, match=rf"\(mode {mode:o}\); chmod 600 {path}") as caught:
            check_access(address, insecure=False)
        assert "abc" not in str(caught.value)
    path.chmod(0o400)
    check_access(FAR[0], insecure=False)


@pytest.mark.parametrize(
    "address", ["", "8265", "host:8265", "ray://host:1", "http://", "http://h:x", "http://h/jobs"]
)
def test_what_is_no_dashboard(address: str) -> None:
    with pytest.raises(InputError, match=r"address = .*; write http://host:8265"):
        head_url(address)


def test_a_password_in_an_address_is_not_repeated() -> None:
    for address in ("http://me:secret@head:8265", "http://head:8265?token=secret"):
        with pytest.raises(InputError, match="a password does not belong") as caught:
            head_url(address)
        assert "secret" not in str(caught.value)
    assert head_url("http://head:8265/") == "http://head:8265"


def test_doctor_does_not_wait_for_ray() -> None:
    """Which tries for ten minutes where nothing listens."""
    for address, code in {"127.0.0.1:1": 4, "nonsense": 2, "127.0.0.1:99999": 2}.items():
        done = CliRunner().invoke(app, ["doctor", "--address", address])
        assert done.exit_code == code
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: address = '{address}': ")


def test_run_asks_first(tmp_path: Path) -> None:
    """Before anything is connected, and with nothing left behind."""
    words = ["run", "one-layer-cnn", "--address", "10.1.2.3:6379", "-o", f"folder={tmp_path / 'x'}"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: RAY_AUTH_MODE = None: ")
    assert not (tmp_path / "x").exists()


# --------------------------------------------------------------------------- heads

Serve = Callable[[int], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that give every caller one answer; their port."""
    servers = []

    def begin(answer: int) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert "Authorization" not in self.headers
                self.send_response(401 if self.path == "/elsewhere" else answer)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_head_that_serves_everyone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by any name but those of this machine, token or not."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    port = serve(200)
    far = f"http://127.1:{port}"  # this machine, but not by a name that is sure to be
    with pytest.raises(UnreachableError, match="this head serves anyone, token or not; start Ray"):
        check_head(far, insecure=False)
    assert check_head(far, insecure=True) == far
    assert check_head(f"http://127.0.0.1:{port}/", insecure=False) == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("answer", [401, 403])
def test_a_head_that_turns_strangers_away(serve: Serve, answer: int) -> None:
    assert not serves_strangers(f"http://127.0.0.1:{serve(answer)}")


@pytest.mark.parametrize("answer", [204, 302, 404, 500])
def test_what_is_no_head(serve: Serve, answer: int) -> None:
    with pytest.raises(UnreachableError, match=rf"no Ray head .* \(HTTP {answer}\)"):
        check_head(f"http://127.0.0.1:{serve(answer)}", insecure=True)


def test_nobody_answers() -> None:
    with pytest.raises(UnreachableError, match=r"nothing answers there \(.*refused"):
        serves_strangers("http://127.0.0.1:1")


# --------------------------------------------------------------------------- what is shipped


def test_the_code_and_the_spec_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    spec = load_spec("one-layer-cnn", {"budget.points": 9})
    here = Path(__file__).parent.parent
    with packed(spec) as folder:
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        assert {name.split("/")[0] for name in files} == {
            *("stabmap", "sweeps", "analysis", "trainables", "spec.yaml"),
        }
        for name, path in files.items():
            assert path.suffix in (".py", ".yaml", ".typed", ".html", ".css", ".js")
            assert b"secret" not in path.read_bytes() or path.suffix == ".py"
            assert name == "spec.yaml" or path.read_bytes() == (here / name).read_bytes()
        assert "sweeps/presets/mnist-mlp.yaml" in files
        shipped = load_spec(folder / "spec.yaml")
    assert not folder.exists()
    assert (shipped.hash, shipped.budget.points) == (spec.hash, 9)
    assert not any("PASS" in name or "TOKEN" in name for name in ENVIRONMENT)


def test_a_home_does_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """But a folder that the spec names does."""
    monkeypatch.setenv("STABMAP_HOME", "/home/laptop")
    assert "folder" not in portable(load_spec("one-layer-cnn"))
    assert portable(load_spec("one-layer-cnn", {"folder": "/data"}))["folder"] == "/data"
    monkeypatch.setenv("STABMAP_HOME", "/home/head")
    text = yaml.safe_dump(portable(load_spec("one-layer-cnn")))
    assert load_spec(yaml.safe_load(text)).folder == "/home/head"
