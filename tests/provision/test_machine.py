"""What this machine has."""

from __future__ import annotations

import os
from pathlib import Path

from provision.machine import detect_local, has_bf16, parse_gpus, parse_meminfo
from runtime.sizing import GIB, MIB, Gpu


def test_this_machine_has_ram_cpus_and_disk(tmp_path: Path) -> None:
    found = detect_local(tmp_path)
    assert 0 < found.free_ram_bytes <= found.ram_bytes
    assert found.ram_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert found.free_disk_bytes is not None
    assert found.free_disk_bytes > 0


def test_free_disk_of_a_folder_that_is_yet_to_be_made_is_that_of_its_parent(tmp_path: Path) -> None:
    assert detect_local(tmp_path / "not" / "yet").free_disk_bytes is not None


def test_meminfo_is_read_in_bytes() -> None:
    text = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n"
    assert parse_meminfo(text) == (16 * GIB, 8 * GIB)


def test_gpus_are_read_from_nvidia_smi_with_their_capability() -> None:
    text = "NVIDIA A10, 23028, 8.6\nNVIDIA A10, 23028, 8.6\n"
    assert parse_gpus(text) == [Gpu("A10", 23028 * MIB, (8, 6))] * 2


def test_an_answer_of_nvidia_smi_that_is_no_table_means_no_gpu() -> None:
    assert parse_gpus("No devices were found\n") == []
    assert parse_gpus("NVIDIA X, [N/A], [N/A]\n") == []


def test_bf16_units_are_read_from_the_cpus_flags() -> None:
    assert has_bf16("flags\t\t: fpu avx2 avx512_bf16\n")
    assert has_bf16("flags\t\t: fpu amx_bf16\n")
    assert not has_bf16("flags\t\t: fpu avx2 avx512f\n")
