"""Several nodes: two agents of torchrun, on one address and on two hosts with a network between."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.integration.launches import TRAIN, free_port, read_run, started, tiny, torchrun

pytestmark = pytest.mark.slow
LINK = "data0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces that reach each other, and nothing else, by a cable of their own."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip (iproute2) to make network namespaces")
    names = (f"dictlearn-{os.getpid()}-a", f"dictlearn-{os.getpid()}-b")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", b"").decode().strip() or str(error)
            pytest.skip(f"network namespaces are not permitted here: {told}")
        # Made inside the namespaces, so that the machine's own network never sees it.
        ip("-n", names[0], "link", "add", LINK, "type", "veth", "peer", LINK, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/30", "dev", LINK)
            for device in ("lo", LINK):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            with suppress(OSError, subprocess.CalledProcessError):
                ip("netns", "delete", name)


def both(commands: list[list[str]], cwd: Path, **variables: str) -> list[str]:
    """Run a command for every node at the same time; return what each said."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(started(command, cwd, **variables)) for command in commands]
        said = [node.communicate(timeout=240)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0] * len(nodes), "\n".join(said)
    return said


def one_run(place: Path, said: list[str]) -> Path:
    """Check that two nodes of two processes left one run, told by one of them."""
    assert sorted(os.listdir(place)) == ["data", "outputs"]
    (folder,) = (place / "outputs" / "dictionary").iterdir()
    read_run(folder, processes=4)
    assert sorted(text.count("Held-out text") for text in said) == [0, 1]
    assert sum(text.count("transformer minilm") for text in said) == 1
    return folder


def test_two_hosts_with_a_network_between_make_one_run(
    hosts: tuple[str, str], tmp_path: Path, few_texts: Path
) -> None:
    commands = [
        [
            *("ip", "netns", "exec", host),
            *torchrun(
                *("--nnodes=2", "--nproc-per-node=2", "--rdzv-id=two hosts", "--rdzv-backend=c10d"),
                *(f"--rdzv-endpoint={ADDRESSES[0]}:29400", f"--local-addr={address}"),
                # Both hosts have the same name here; torchrun tells by the name who is the host.
                f"--rdzv-conf=is_host={int(address == ADDRESSES[0])},join_timeout=60",
            ),
            *tiny(few_texts, "trainer=ddp_cpu"),
        ]
        for host, address in zip(hosts, ADDRESSES, strict=True)
    ]
    said = both(commands, tmp_path, GLOO_SOCKET_IFNAME=LINK)
    assert one_run(tmp_path, said).name == "elastic-two-hosts"


def test_two_agents_without_an_id_leave_one_directory_and_say_how_to_resume(
    tmp_path: Path, few_texts: Path
) -> None:
    options = (
        *("--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *(f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"),
    )
    command = [*torchrun(*options), *tiny(few_texts, "trainer=ddp_cpu")]
    said = both([command] * 2, tmp_path, GLOO_SOCKET_IFNAME="lo")
    one_run(tmp_path, said)
    assert sum(text.count("--rdzv-id=ID") for text in said) == 1


def test_nodes_started_by_hand_make_one_run(tmp_path: Path, few_texts: Path) -> None:
    shape = ("trainer=ddp_cpu", "trainer.num_nodes=2")
    port = str(free_port())
    command = [sys.executable, TRAIN, *tiny(few_texts, *shape)]
    said = both(
        [["env", f"NODE_RANK={node}", *command] for node in (0, 1)],
        tmp_path,
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
    )
    one_run(tmp_path, said)
