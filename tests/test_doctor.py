"""The doctor names everything that decides what an installation can do."""

from importlib.metadata import PackageNotFoundError

from shiftscope import doctor


def test_every_subject_has_a_finding():
    found = doctor.findings()
    assert {"torch", "threads", "compiler", "accelerator", "bf16", "browser"} <= {name for name, _ in found}
    assert all(finding for _, finding in found)


def test_a_missing_extra_is_said_to_be_missing(monkeypatch):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", absent)
    assert ("extra", "ray not installed (extra ray)") in doctor.findings()
