"""What the sentence for an unknown option offers: the option that is meant, or none."""

import pytest

from gralora_diffusion.cli.main import main


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("train --network-dim 8", "unknown option --network-dim: --rank is the rank"),
        ("train --reg-dir x", "unknown option --reg-dir: --class_data_dir names the class images"),
        ("train --learning-rate 1", "unknown option --learning-rate; did you mean '--learning_rate'?"),
        ("train --max_steps 9", "unknown option --max_steps; did you mean '--max_train_steps'?"),
        ("train --warmup 9", "unknown option --warmup; did you mean '--lr_warmup_steps' or '--prod"),
        (
            "train --class_dir x",
            "unknown option --class_dir; did you mean '--class_data_dir'?",
        ),
        ("train --report_dir x", "unknown option --report_dir; --help_all lists all options"),
        ("train --zzz", "unknown option --zzz; --help_all lists all options"),
        ("sample --lora-path x --prompt y", "unknown option --lora-path: --adapter is its name here"),
    ],
)
def test_an_unknown_option_gets_the_one_that_is_meant(command, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"gralora {command.split()[0]}: {sentence}")
