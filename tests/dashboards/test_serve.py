"""The live server over real HTTP: right answers, the site's files, who may ask, start and end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards.live_parts import TEXT, run_at
from dashboards.serve_client import ACT, STEER, ask, refused, running
from mechlab.artifacts import Artifact, open_artifact
from mechlab.cli.dashboard_serve import ServeConfig, _page
from mechlab.cli.main import main
from mechlab.dashboards.live import ActivationsRequest, SteerRequest
from mechlab.dashboards.serve import Server
from mechlab.errors import MechlabError

SECRET = "a-secret-of-some-length"


@pytest.fixture(scope="module")
def guarded(live, site):
    with running(live, site, token=SECRET) as started:
        yield started


# ---------- right answers ----------


def test_answers_are_those_of_the_model(server, live):
    edit = {"feature": 5, "mode": "add", "strength": 2}
    steer = {"text": TEXT, "edits": [edit], "seed": 4, "temperature": 1.0}
    for path, question, want in [
        (
            ACT,
            {"text": TEXT, "features": [1, 5]},
            live.activations(ActivationsRequest(text=TEXT, features=(1, 5))),
        ),
        (STEER, steer, live.steer(SteerRequest.model_validate_json(json.dumps(steer)))),
    ]:
        status, headers, body = ask(server, "POST", path, question)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert json.loads(body) == json.loads(json.dumps(want))


def test_info_says_what_can_be_asked(server, live):
    status, _, body = ask(server, "GET", "/api/info")
    info = json.loads(body)
    assert status == 200
    assert info["model"] == "fable"
    assert info["features"] == 96
    assert info["context"] == live.subject.n_ctx - 1
    assert info["limits"]["characters"] == 4000


def test_the_page_is_the_site_s_with_a_policy_that_lets_it_ask(server, site):
    for path in ("/", "/index.html", "/?whatever=1"):
        status, headers, body = ask(server, "GET", path)
        page = body.decode()
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert "connect-src 'self'" in headers["Content-Security-Policy"]
        assert "Content-Security-Policy" not in page
        facts = json.loads(re.search(r'id="b-site">(.*?)</script>', page)[1])
        assert facts["live"]["limits"]["characters"] == 4000
        # Every script of the page is allowed by its hash.
        assert headers["Content-Security-Policy"].count("'sha256-") == page.count("<script>") == 2
    assert (
        '"live"' not in (site.path / "index.html").read_text().split('id="b-site">')[1].split("</script>")[0]
    )
    status, headers, body = ask(server, "GET", "/data/features-0.js")
    assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    assert body == (site.path / "data" / "features-0.js").read_bytes()


@pytest.mark.parametrize("path", ["/", "/api/info", "/data/features-0.js", "/nothing"])
def test_every_answer_is_fenced_in(server, path):
    status, headers, _ = ask(server, "GET", path)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers
    assert not re.search(r"Python|\d\.\d", headers["Server"])
    head_status, head, body = ask(server, "HEAD", path)
    assert (head_status, head["Content-Length"], body) == (status, headers["Content-Length"], b"")


# ---------- files ----------


@pytest.mark.parametrize(
    "path",
    [
        "/../manifest.json",
        "/manifest.json",
        "/data/../../sae/cfg.json",
        "/data/..%2f..%2fmanifest.json",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/data/%00.js",
        "//etc/passwd",
        "/data/",
        "/data",
        "/data/features-0.js/",
        "/index.html/..",
        "/..\\manifest.json",
        "/api",
        "/api/eval",
        "//[",
        "/data/features-9.js",
    ],
)
def test_only_listed_files_are_served(server, path):
    assert refused(server, "GET", path) == (404, "nothing here")


def test_a_manifest_cannot_list_files_outside(live, site, tmp_path):
    shutil.copytree(site.path, tmp_path / "site")
    (tmp_path / "secret.js").write_text("secret")
    (tmp_path / "site" / "link.js").symlink_to(tmp_path / "secret.js")
    files = {**site.manifest.files, "../secret.js": {}, str(tmp_path / "secret.js"): {}, "link.js": {}}
    lying = Artifact(tmp_path / "site", replace(site.manifest, files=files))
    with running(live, lying) as server:
        for path in ("/../secret.js", f"/{tmp_path}/secret.js", "/link.js", "/secret.js"):
            assert refused(server, "GET", path)[0] == 404


# ---------- who may ask ----------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:{port}",
        "evil.example",
        "127.0.0.1.evil.example:1",
        "127.0.0.1:{port}.evil.example",
        "localhost:1:1",
        "localhost.:1",
        "127.0.0.2:{port}",
        "[::1",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/info", "/data/features-0.js"])
def test_another_name_for_this_server_is_refused(server, host, path):
    status, error = refused(server, "GET", path, Host=host.format(port=server.port))
    assert status == 403
    assert error.startswith("this server goes by another name")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}", "localhost", "[::1]"]
)
def test_names_of_this_machine_are_known(server, host):
    assert ask(server, "GET", "/api/info", Host=host.format(port=server.port))[0] == 200


def test_a_tunnel_s_other_end_may_have_another_port(server):
    """ssh -L 9999:localhost:PORT. Its page asks from the same origin, another page does not."""
    there = {"Host": "localhost:9999"}
    assert ask(server, "POST", ACT, {"text": TEXT}, Origin="http://localhost:9999", **there)[0] == 200
    for origin in ("http://localhost:9998", f"http://localhost:{server.port}", "http://evil.example:9999"):
        assert refused(server, "POST", ACT, {"text": TEXT}, Origin=origin, **there)[0] == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://[", "", "file://"]
)
def test_pages_of_other_sites_may_not_ask(server, origin):
    question = {"text": TEXT}
    assert refused(server, "POST", ACT, question, Origin=origin)[0] == 403
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, "POST", ACT, question, Origin=own)[0] == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_forms_of_other_sites_cannot_ask(server, kind):
    assert refused(server, "POST", ACT, {"text": TEXT}, Content_Type=kind)[0] == 415


def test_without_the_token_nothing_is_told(guarded):
    wrong = ["", "x", SECRET[:-1], SECRET + "x", "\xe9" * 23]
    for path in ("/", "/api/info", "/data/features-0.js", "/nothing"):
        assert refused(guarded, "GET", path)[0] == 401
        for token in wrong:
            assert refused(guarded, "GET", path, Authorization=f"Bearer {token}")[0] == 401
            assert refused(guarded, "GET", path, Cookie=f"mechlab-{guarded.port}={token}")[0] == 401
    assert refused(guarded, "GET", "/?token=wrong")[0] == 401
    assert refused(guarded, "POST", ACT, {"text": TEXT})[0] == 401
    assert refused(guarded, "POST", f"{ACT}?token={SECRET}", {"text": TEXT})[0] == 401
    assert ask(guarded, "GET", "/api/info")[1]["WWW-Authenticate"] == "Bearer"


def test_the_token_opens_as_header_address_and_cookie(guarded):
    bearer = {"Authorization": f"Bearer {SECRET}"}
    assert ask(guarded, "POST", ACT, {"text": TEXT}, **bearer)[0] == 200
    status, headers, page = ask(guarded, "GET", f"/?token={SECRET}")
    assert status == 200
    assert SECRET.encode() not in page
    cookie = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    kept = f"other=1; {cookie.split(';')[0]}"
    assert ask(guarded, "GET", "/data/features-0.js", Cookie=kept)[0] == 200
    assert ask(guarded, "POST", ACT, {"text": TEXT}, Cookie=kept)[0] == 200
    assert "Set-Cookie" not in ask(guarded, "GET", "/", Cookie=kept)[1]


def test_other_addresses_get_a_token_and_this_machine_none(live, site):
    with running(live, site, host="0.0.0.0") as server:
        assert server.token is not None
        assert len(server.token) >= 24
        assert server.url.endswith(f"/?token={server.token}")
        assert refused(server, "GET", "/")[0] == 401
        assert ask(server, "GET", "/", Authorization=f"Bearer {server.token}", Host="some.name:1")[0] == 200
    with running(live, site, host="localhost") as server:
        assert server.token is None
        assert server.url == f"http://localhost:{server.port}/"


# ---------- starting and ending ----------


def test_what_cannot_be_served_is_said_in_a_line(live, site, tmp_path):
    with running(live, site) as server, pytest.raises(MechlabError, match="port is in use"):
        Server(live, site, port=server.port)
    for options, says in [
        ({"port": 70_000}, "port is out of range"),
        ({"host": "256.1.1.1"}, "cannot listen here"),
        ({"host": "192.0.2.1"}, "cannot listen here"),
        ({"host": "no such host"}, "cannot listen here"),
        ({"token": "short"}, "token is too easy to guess"),
        ({"token": "with spaces, and; more"}, "cannot stand in an address"),
        ({"seconds": 0.0}, "seconds are out of range"),
    ]:
        with pytest.raises(MechlabError, match=says):
            Server(live, site, **options)


def test_a_dashboard_of_another_dictionary_is_not_served(live, site):
    for found, fits in ((live.dictionary.artifact.manifest.fingerprint, True), ("0" * 64, False)):
        of = Artifact(site.path, replace(site.manifest, inputs={"dictionary": found}))
        if fits:
            Server(live, of).server_close()
            continue
        with pytest.raises(MechlabError, match="dashboard is of another dictionary"):
            Server(live, of)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tmp_path, tmp_path_factory):
    """A run that has no dashboard yet; then the same port again, with a dashboard of another version."""
    run = run_at(tmp_path / "run", tmp_path_factory.getbasetemp())
    shutil.rmtree(run / "dashboard")
    command = [sys.executable, "-m", "mechlab", "dashboard", "serve", str(run), "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            while not (
                found := re.search(r"serving http://127\.0\.0\.1:(\d+)/$", lines[-1] if lines else "")
            ):
                lines.append(process.stderr.readline().rstrip())
                assert lines[-1], "\n".join(lines)
            assert lines[0] == f"mechlab: {run} has no dashboard yet: building {run / 'dashboard'}"
            assert open_artifact(run / "dashboard", "dashboard").manifest.config["views"][0] == "features"
            port = int(found[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", ACT, json.dumps({"text": TEXT}), {"Content-Type": "application/json"})
            assert connection.getresponse().status == 200
            manifest = json.loads((run / "dashboard" / "manifest.json").read_text())
            manifest["config"]["client"] = "0" * 64
            (run / "dashboard" / "manifest.json").write_text(json.dumps(manifest))
            again = subprocess.run(
                [*command, "--port", str(port)], capture_output=True, text=True, timeout=120, check=False
            )
            assert again.returncode == 2
            older, taken = again.stderr.strip().splitlines()
            assert "was built by another version" in older
            assert taken == f"mechlab: port is in use: 127.0.0.1:{port} (choose another --port)"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert json.loads(out) == {"port": port, "questions": 1}
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_dashboard_that_the_run_cannot_take_stands_elsewhere(tmp_path, tmp_path_factory):
    run = run_at(tmp_path / "run", tmp_path_factory.getbasetemp())
    shutil.rmtree(run / "dashboard")
    (run / "dashboard").write_text("in the way")
    with contextlib.ExitStack() as rest:
        place = _page(ServeConfig(run=run), rest)
        assert not place.is_relative_to(run)
        assert open_artifact(place, "dashboard").manifest.inputs["dictionary"]
    assert not place.exists()
    assert (run / "dashboard").read_text() == "in the way"


@pytest.mark.parametrize(
    ("site", "says"),
    [("nothing", "no dashboard here"), ("run/sae", "holds another kind of artifact: dictionary")],
)
def test_what_is_no_dashboard_is_refused(tmp_path, tmp_path_factory, capsys, site, says):
    run_at(tmp_path / "run", tmp_path_factory.getbasetemp())
    with pytest.raises(SystemExit) as stopped:
        main(["dashboard", "serve", str(tmp_path / "run"), "--site", str(tmp_path / site)])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("lost", "says"), [("sae", "here"), ("features", "here"), ("manifest.json", "no run here")]
)
def test_a_run_that_lacks_a_part_is_refused(tmp_path, tmp_path_factory, capsys, lost, says):
    run = run_at(tmp_path / "run", tmp_path_factory.getbasetemp())
    (shutil.rmtree if lost != "manifest.json" else Path.unlink)(run / lost)
    with pytest.raises(SystemExit) as stopped:
        main(["dashboard", "serve", str(run)])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line
