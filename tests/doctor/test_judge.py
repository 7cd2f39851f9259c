"""pipeline.doctor.judge: each fault of a host turns its line red or yellow, and says what to do."""

import copy

import pytest

from pipeline.doctor.judge import FAIL, OK, WARN, address_of, interface_of, judge
from pipeline.launch.hosts import Host
from tests.parts.doctored import GIB, H100, HEALTHY, ROOM


def changed(**changes) -> dict:
    """A healthy host's answer but for ``changes``; a key such as memory__free goes one deeper."""
    answer = copy.deepcopy(HEALTHY)
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            answer[outer][inner] = value
        else:
            answer[outer] = value
    return answer


def gpus(count: int, **changes) -> dict:
    found = {"error": None, "devices": [H100] * count, "driver": "550.1", "bf16": True, "build": "12.8"}
    return changed(accelerator=found | changes.pop("found", {}), compiler__triton="3.7", **changes)


def notable(*answers: dict, slots: int = 2) -> list[tuple[str, str, str, str]]:
    """(host, check, level, text) of what is not OK when hosts a, b, c … answer so."""
    found = judge({Host("abcdef"[number], slots): answer for number, answer in enumerate(answers)})
    return [(each.host, each.check, each.level, each.text) for each in found if each.level != OK]


def test_healthy_hosts_are_green():
    assert notable(HEALTHY) == notable(HEALTHY, HEALTHY) == notable(gpus(8), gpus(8), slots=8) == []


@pytest.mark.parametrize(
    "answer, check, level, text",
    [
        (changed(packages__torch=None), "versions", FAIL, "torch not installed; pip install the project"),
        (changed(unmet=["torch 2.1 (needs >=2.9)"]), "versions", FAIL, "torch 2.1 (needs >=2.9); pip install the"),
        (
            changed(accelerator__error="OSError: libc10.so"),
            "accelerator",
            FAIL,
            "torch and transformers cannot be loaded: OSError: lib",
        ),
        (changed(accelerator__driver="550.1"), "accelerator", FAIL, "driver 550.1 is here, but torch is a CPU build"),
        (gpus(0), "accelerator", FAIL, "driver 550.1 is here, but torch (CUDA 12.8) cannot use it"),
        (gpus(1), "accelerator", FAIL, "1 × NVIDIA H100, fewer than the hostfile's slots=2; lower slots"),
        (gpus(2, found={"bf16": False}), "accelerator", WARN, "no bf16 units: set precision = 'fp32'"),
        (changed(cpu__cores=1, cpu__why="1 core"), "CPU", WARN, "1 core, AMX bf16: fewer than its 2 ranks"),
        (
            changed(cpu__cores=1, cpu__why="a CPU quota of 0.5"),
            "CPU",
            WARN,
            "1 core (a CPU quota of 0.5), AMX bf16: fewer than its 2 ranks",
        ),
        (
            changed(cpu__asked_threads=5),
            "CPU",
            WARN,
            "8 cores, AMX bf16; 5 threads a rank (OMP_NUM_THREADS=5): more than the cores; lower OMP_NUM_THREADS or unset it",
        ),
        (changed(compiler__error="g++ is not installed"), "compiler", WARN, "g++ is not installed; without a compiler"),
        (gpus(2) | {"compiler": HEALTHY["compiler"]}, "compiler", WARN, "Triton is not installed"),
        (changed(memory__free=GIB), "memory", FAIL, "1.0 GiB of 64.0 GiB free, under 1 GiB for each of 2 ranks"),
        (changed(memory__free=7 * GIB), "memory", WARN, "7.0 GiB of 64.0 GiB free, under 4 GiB for each"),
        (
            changed(shared_memory__free=2**26),
            "/dev/shm",
            WARN,
            "64.0 MiB free, under 0.25 GiB; give the container more",
        ),
        (gpus(2, shared_memory__free=2**26), "/dev/shm", FAIL, "64.0 MiB free, under 0.25 GiB"),
        (changed(open_files=1000), "open files", WARN, "1000 allowed; raise it (ulimit -n 65536)"),
        (changed(open_files=200), "open files", FAIL, "200 allowed; raise it"),
        (changed(infiniband=["mlx5_0"]), "locked memory", FAIL, "8.0 MiB allowed; mlx5_0 needs no limit"),
        (
            changed(cache_space__free=GIB - 1),
            "compile cache",
            WARN,
            "/tmp/cache: 1.0 GiB free, under 1.0 GiB; free some",
        ),
        (
            changed(cache_space__error="Read-only"),
            "compile cache",
            WARN,
            "/tmp/cache: cannot be written to (read-only)",
        ),
        (changed(folders={"/s": ROOM | {"free": 0}}), "disk", FAIL, "/s: 0.0 GiB free, under 1.0 GiB; free some"),
        (changed(folders={"/s": ROOM | {"free": 2 * GIB}}), "disk", WARN, "/s: 2.0 GiB free, under 20.0 GiB"),
        (changed(folders={"/s": ROOM | {"error": "No such"}}), "disk", FAIL, "/s: cannot be written to (no such)"),
        (
            changed(variables={"GLOO_SOCKET_IFNAME": "eth"}),
            "network",
            FAIL,
            "GLOO_SOCKET_IFNAME=eth: there is no interface eth; here are lo, eth0, eth1",
        ),
        (changed(variables={"NCCL_SOCKET_IFNAME": "ib0,eth"}), "network", FAIL, "there is no interface ib0"),
        (changed(variables={"GLOO_SOCKET_IFNAME": "eth1"}), "network", FAIL, "eth1 is down or has no address"),
    ],
)
def test_a_host_that_is_not_fit_says_what_to_do(answer, check, level, text):
    [found] = notable(answer)
    assert found[:3] == ("a", check, level) and text in found[3]


@pytest.mark.parametrize("value", ["eth", "=eth0", "^docker0", "eth0:5000,eth1", "eth0"])
def test_nccl_takes_the_beginning_of_a_name_and_names_to_leave_out(value):
    answer = changed(variables={"NCCL_SOCKET_IFNAME": value})
    answer["interfaces"]["eth1"] |= {"up": True, "addresses": ["10.0.1.1"]}
    assert notable(answer) == []


@pytest.mark.parametrize(
    "changes, check, text",
    [
        ({"packages__torch": "0.9"}, "versions", "torch 0.9, but 1.0 on a, c; install the same everywhere"),
        ({"python": "3.12.1"}, "versions", "Python 3.12.1, but 3.11.7 on a, c"),
        ({"code": "cd" * 32}, "code", "cdcdcdcdcdcd, but abababababab on a, c"),
        ({"accelerator": gpus(2)["accelerator"]}, "accelerator", "2 × NVIDIA H100, but no GPU on a, c"),
    ],
)
def test_of_three_hosts_the_odd_one_is_red(changes, check, text):
    [found] = notable(HEALTHY, changed(**changes) | {"compiler": gpus(2)["compiler"]}, HEALTHY)
    assert found[:3] == ("b", check, FAIL) and text in found[3]


def test_of_two_hosts_that_differ_the_second_is_red_and_names_the_first():
    assert notable(changed(python="3.12.1"), HEALTHY) == [
        ("b", "versions", FAIL, "Python 3.11.7, but 3.12.1 on a; install the same everywhere")
    ]


def test_unlike_gpus_and_unlike_mtus_are_warned_of():
    small = changed(interfaces__eth0=HEALTHY["interfaces"]["eth0"] | {"mtu": 9000})
    assert notable(HEALTHY, small) == [
        (
            "b",
            "network",
            WARN,
            "eth0 10.0.0.1, 10 Gbit/s, MTU 9000, but MTU 1500 on a: large packets may be lost; set the same",
        )
    ]
    assert notable(gpus(8), gpus(4)) == [("b", "accelerator", WARN, "4 × NVIDIA H100, but 8 × NVIDIA H100 on a")]


@pytest.mark.parametrize("addresses", [["127.0.1.1"], ["::1"], []])
def test_a_host_name_that_is_the_loopback_is_red_between_hosts_unless_an_interface_is_named(addresses):
    trapped = changed(name="debian", name_addresses=addresses)
    assert notable(trapped) == []
    [found] = notable(HEALTHY, trapped)
    assert found[:3] == ("b", "host name", FAIL)
    start = "debian is " + addresses[0] if addresses else "debian does not resolve"
    assert found[3] == (f"{start}: others cannot reach that; mend /etc/hosts there, or set GLOO_SOCKET_IFNAME=eth0")
    trapped["variables"] = {"GLOO_SOCKET_IFNAME": "eth0"}
    assert notable(HEALTHY, trapped) == []


def test_between_hosts_an_address_is_needed_that_others_can_reach():
    alone = changed(reached_at=None)
    alone["interfaces"]["eth0"]["up"] = False
    [found] = notable(HEALTHY, alone)
    assert found[1:3] == ("network", FAIL)
    assert found[3].startswith("no interface that is up has an address that others can reach: lo, eth0, eth1")


def test_the_address_is_that_of_the_named_interface_or_of_the_ssh_connection():
    own = copy.deepcopy(HEALTHY)
    own["interfaces"]["ib0"] = {"addresses": ["10.9.0.1"], "up": True, "speed": 100000, "mtu": 2044}
    assert address_of(own) == "10.0.0.1"
    assert address_of(own | {"reached_at": "::ffff:10.9.0.1"}) == "10.9.0.1"
    assert address_of(own | {"reached_at": "127.0.0.1"}) == "10.0.0.1"
    assert address_of(own | {"variables": {"GLOO_SOCKET_IFNAME": "ib0"}}) == "10.9.0.1"
    assert interface_of(own | {"reached_at": "10.9.0.1"}) == "ib0"


@pytest.mark.parametrize("asked, words", [(None, "4 threads a rank"), (1, "1 thread a rank (OMP_NUM_THREADS=1)")])
def test_the_threads_of_a_rank_are_said(asked, words):
    found = judge({Host("a", 2): changed(cpu__asked_threads=asked)})
    assert [each.text for each in found if each.check == "CPU"] == [f"8 cores, AMX bf16; {words}"]


def test_how_fast_products_are_is_said_where_ranks_run_on_the_cpu():
    products = {"accelerator__products": "native 2 GFLOP/s a core, widened to fp32 and rounded 1"}
    (found,) = (each for each in judge({Host("a", 2): changed(**products)}) if each.check == "CPU")
    assert found.text == f"8 cores, AMX bf16; 4 threads a rank; bf16 products: {products['accelerator__products']}"
