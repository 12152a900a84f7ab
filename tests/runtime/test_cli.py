"""`deployctl-runtime`: what it decides before anything heavy is imported."""

import pytest

from runtime.cli import build_parser, is_busy, main
from runtime.vm import VM_FILE


@pytest.mark.parametrize(
    ("load", "cores", "busy"), [(0.1, 2, False), (2.0, 2, False), (2.1, 2, True), (9.0, 16, False)]
)
def test_a_machineis_busy_when_more_wants_to_run_than_there_are_cores(load: float, cores: int, busy: bool) -> None:
    assert is_busy(load, cores) is busy


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["agent"], "one of the arguments --state --vm is required"),
        (["agent", "--state", "machine"], "--state and --mailbox go together"),
        (["agent", "--vm", "vm.json", "--mailbox", "mailbox"], "--state and --mailbox go together"),
        (["agent", "--vm", "vm.json", "--state", "machine"], "not allowed with argument"),
    ],
)
def test_an_agent_is_either_a_vms_or_a_folders(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_an_installation_is_for_the_vm_that_user_data_describes() -> None:
    assert build_parser().parse_args(["install"]).vm == VM_FILE
