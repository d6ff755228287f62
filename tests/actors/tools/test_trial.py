"""`drakkar certificates`: an authority and certificates for a trial, with which hosts work."""

import stat
import sys
from contextlib import contextmanager
from datetime import timedelta

import pytest
from cryptography import x509
from drakkar.actors import NodeHost, TlsConfig
from drakkar.actors.tools import cli, trial

from tests.actors.support import Ledger, commit
from tests.ports import free_addresses


@pytest.fixture
def drakkar(capsys):
    """Run a command, and return what it prints: to stderr, where it fails."""

    def run(*arguments, status=0):
        assert cli.main(list(map(str, arguments))) == status
        out, err = capsys.readouterr()
        return err if status else out

    return run


def read(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


@contextmanager
def two_hosts(folder):
    """Run a shard on two hosts with the certificates of 127.0.0.1; one of the hosts, and its replica."""
    tls = TlsConfig(*(folder / name for name in ("ca.pem", "127.0.0.1.pem", "127.0.0.1.key")))
    members = dict(enumerate(free_addresses(2), 1))
    with NodeHost(members[1], tls=tls) as one, NodeHost(members[2], tls=tls) as other:
        replicas = [
            host.start_replica(Ledger, shard_id=1, replica_id=number, members=members)
            for number, host in ((1, one), (2, other))
        ]
        yield one, replicas[0]


def test_hosts_work_with_what_it_makes(drakkar, tmp_path):
    folder = tmp_path / "certs"
    shown = drakkar("certificates", folder, "127.0.0.1", "db-1.example.com", "::1")
    assert f"127.0.0.1: {folder}/127.0.0.1.pem and {folder}/127.0.0.1.key" in shown
    with two_hosts(folder) as (_, replica):
        commit(replica, b"safe")
    certificate, authority = read(folder / "::1.pem"), read(folder / "ca.pem")
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(365)
    assert authority.not_valid_after_utc - authority.not_valid_before_utc == timedelta(3650)
    assert f"127.0.0.1.key, good until {certificate.not_valid_after_utc:%Y-%m-%d}" in shown
    assert f"ca.key: a new authority, good until {authority.not_valid_after_utc:%Y-%m-%d}" in shown
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_authority_that_is_there_is_used_again_and_nothing_is_overwritten(drakkar, tmp_path):
    drakkar("certificates", tmp_path, "10.0.0.1", "10.0.0.1")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    told = drakkar("certificates", tmp_path, "10.0.0.2", "10.0.0.1", status=1)
    assert f"HOST='10.0.0.1': has {tmp_path}/10.0.0.1.pem already" in told
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    drakkar("certificates", tmp_path, "10.0.0.2")
    read(tmp_path / "10.0.0.2.pem").verify_directly_issued_by(read(tmp_path / "ca.pem"))
    (tmp_path / "ca.key").unlink()
    assert "has ca.pem alone" in drakkar("certificates", tmp_path, "10.0.0.3", status=1)
    (tmp_path / "ca.key").write_bytes((tmp_path / "10.0.0.2.key").read_bytes())
    assert "this command did not make" in drakkar("certificates", tmp_path, "10.0.0.3", status=1)
    (tmp_path / "ca.key").write_text("no key")
    assert "cannot be read" in drakkar("certificates", tmp_path, "10.0.0.3", status=1)


def test_a_host_gets_a_new_certificate_of_the_same_authority_and_works_on(drakkar, tmp_path):
    """The steps of docs/operations.md."""
    drakkar("certificates", tmp_path, "127.0.0.1")
    first = read(tmp_path / "127.0.0.1.pem").serial_number
    with two_hosts(tmp_path) as (host, replica):
        commit(replica, b"before")
        for name in ("127.0.0.1.pem", "127.0.0.1.key"):
            (tmp_path / name).rename(tmp_path / f"{name}.old")
        assert "the authority that was there, good until" in drakkar("certificates", tmp_path, "127.0.0.1")
        host.reload_tls()
        commit(replica, b"after")
    assert read(tmp_path / "127.0.0.1.pem").serial_number != first


def test_no_certificate_is_good_for_longer_than_its_authority(drakkar, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "_AUTHORITY_GOOD_FOR", timedelta(days=30))
    drakkar("certificates", tmp_path, "10.0.0.1")
    authority = read(tmp_path / "ca.pem")
    assert read(tmp_path / "10.0.0.1.pem").not_valid_after_utc == authority.not_valid_after_utc


def test_an_authority_that_has_expired_signs_nothing(drakkar, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "_AUTHORITY_GOOD_FOR", timedelta(minutes=30))
    monkeypatch.setattr(trial, "_CLOCKS_DIFFER", timedelta(hours=1))
    trial._authority(tmp_path)
    told = drakkar("certificates", tmp_path, "10.0.0.1", status=1)
    assert "has an authority that has expired, on 20" in told
    assert "name another directory" in told
    assert not (tmp_path / "10.0.0.1.key").exists()


@pytest.mark.parametrize(
    "host", ["10.0.0.1:7001", "../evil", "a b", "", "-a", "ca", "*.example.com", "x" * 254]
)
def test_what_is_no_host_is_refused(drakkar, tmp_path, host):
    told = drakkar("certificates", tmp_path / "new", "10.0.0.1", "--", host, status=1)
    assert f"HOST={host!r}: must be a DNS name or an IP address, without a port" in told
    assert not (tmp_path / "new").exists()


def test_without_the_library_the_remedy_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delitem(sys.modules, "drakkar.actors.tools.trial", raising=False)
    assert cli.main(["certificates", str(tmp_path), "10.0.0.1"]) == 1
    assert "pip install 'drakkar[tls]'" in capsys.readouterr().err
