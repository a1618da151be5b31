import signal

import pytest

from lwm.cli import train as commands
from lwm.recipes import debug
from lwm.train.loop import Stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_run_does_not_end_as_a_complete_one(number, monkeypatch, tmp_path, capsys):
    def stop(*_, **__):
        raise Stopped(3, number)

    monkeypatch.setattr("lwm.train.run.run", stop)
    with pytest.raises(SystemExit) as ended:
        commands.train("debug", debug(), commands.Options(out=tmp_path))
    assert ended.value.code == 128 + number
    assert "stopped after step 3; run the same again to go on" in capsys.readouterr().err
