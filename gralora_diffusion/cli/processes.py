"""Several training processes on one machine: accelerate's launcher without `accelerate launch`.

Exit codes and messages come through as one process would give them.
"""

import os
import signal
import socket
from multiprocessing.connection import wait

from gralora_diffusion.console import counted, fail

GRACE = 10.0  # seconds that the other processes have to end by themselves when one has failed


def launch(argv: list[str], num_processes: int) -> None:
    """Run `gralora train` with these options in several processes, on GPUs if there are any, else on the CPU.

    Returns when all of them are done; exits with the code of the first that fails.
    """
    import torch
    from accelerate.utils import patch_environment
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

    gpus = torch.accelerator.device_count()
    if 0 < gpus < num_processes:
        fail(f"--num_processes is {num_processes}, but this machine has {counted(gpus, 'GPU')}: lower it")
    common = dict(world_size=num_processes, master_addr="127.0.0.1", master_port=free_port())
    if not gpus:
        common |= dict(accelerate_use_cpu="true")
    if "OMP_NUM_THREADS" not in os.environ:  # processes that all use all cores slow each other down
        common |= dict(omp_num_threads=max(1, (os.cpu_count() or 1) // num_processes))
    with patch_environment(**common):
        started = start_processes(run, (argv,), num_processes, join=False, start_method="spawn")

    def pass_on(number, _frame) -> None:
        for process in started.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    wait_for(started.processes)
    try:
        while not started.join():  # ends those that are left where one has failed
            pass
    except ProcessExitedException as error:  # its own message is printed already
        raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code) from None
    except ProcessRaisedException as error:
        fail(str(error), code=1)


def wait_for(processes: list) -> None:
    """Until all have ended, or one has failed and the others had time to say why too."""
    alive = processes
    while alive and not any(process.exitcode for process in processes):
        wait([process.sentinel for process in alive])
        alive = [process for process in alive if process.is_alive()]
    for process in processes:
        process.join(GRACE)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(rank: int, argv: list[str]) -> None:
    """One of the processes."""
    from accelerate.utils import PrepareForLaunch

    start = PrepareForLaunch(train, distributed_type="MULTI_CPU")  # sets RANK and LOCAL_RANK, for GPUs too
    start(rank, argv)


def train(argv: list[str]) -> None:
    from gralora_diffusion.cli.main import main

    main(["train", *argv])
