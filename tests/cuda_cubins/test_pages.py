"""The kernels' pages give the registers of the baseline, which is held to what is compiled. Needs no compiler."""

from __future__ import annotations

import json

import cuda_cubins

PAGES = cuda_cubins.HERE.parents[1] / "docs" / "kernels"
HEADING = "registers sm_80 / 90 / 100 / 120"
ARCHITECTURES = ("80", "90a", "100", "120")

# By page and what heads the first column, of each row the kernels whose registers stand there.
TABLES: dict[tuple[str, str], dict[str, str]] = {
    ("alk_condense", "float16, but for the last"): {
        "64 -> 32 -> 64 -> 16": "alk_condense_kernel<half, 0>",
        "the same, float32 in TF32": "alk_condense_kernel<Tf32, 0>",
    },
    ("alk", "float32 in TF32, S = 24"): {
        "forward": "alk_forward_kernel<Tf32, 24, 0>",
        "branches": "alk_branch_backward_kernel<Tf32, 24>",
        "transposed": "alk_transposed_kernel<Tf32, 24>",
        "gd": "alk_distil_backward_kernel<Tf32>",
        "dx": "alk_input_gradient_kernel<Tf32>",
        "weights": "weight_gradient_kernel<Tf32, 1, 1>",
    },
    ("alk", "float16, S = 24"): {
        "forward": "alk_forward_kernel<half, 24, 0>",
        "branches": "alk_branch_backward_kernel<half, 24>",
        "transposed": "alk_transposed_kernel<half, 24>",
        "norm, 64 channels": "alk_norm_backward_kernel<half, 2>",
        "weights": "weight_gradient_kernel<half, 1, 1>",
    },
    ("bsconv", "float32 in TF32"): {
        "forward, 64 channels out": "bsconv_kernel<Tf32, 4, false>",
        "forward, 32 channels out": "bsconv_kernel<Tf32, 2, false>",
        "stage": "bsconv_kernel<Tf32, 4, true>",
        "backward, pass 1": "bsconv_filters_kernel<Tf32, 4, false>",
        "backward, pass 2": "bsconv_input_kernel<Tf32, 4, false>",
        "stage, backward, pass 1": "bsconv_filters_kernel<Tf32, 4, true>",
        "stage, backward, pass 2": "bsconv_input_kernel<Tf32, 4, true>",
    },
    ("bsconv", "float16"): {
        "forward, 64 channels out": "bsconv_kernel<half, 4, false>",
        "forward, 32 channels out": "bsconv_kernel<half, 2, false>",
        "stage": "bsconv_kernel<half, 4, true>",
        "backward, pass 1": "bsconv_filters_kernel<half, 4, false>",
        "backward, pass 2": "bsconv_input_kernel<half, 4, false>",
        "stage, backward, pass 1": "bsconv_filters_kernel<half, 4, true>",
        "stage, backward, pass 2": "bsconv_input_kernel<half, 4, true>",
    },
    ("cca_norm", "float16, 64 channels"): {
        "moments": "cca_moments_kernel<half, 8>",
        "apply": "cca_apply_kernel<half, 8>",
        "sums": "cca_sums_kernel<half, 8>",
        "apply_backward": "cca_apply_backward_kernel<half, 8>",
        "attention, per image": "cca_attention_kernel<512>",
        "attention_backward, per image": "cca_attention_backward_kernel<512>",
    },
    ("conv3x3", "float32 in TF32"): {
        "conv3x3, 64 channels out": "conv3x3_kernel<Tf32, 4>",
        "conv3x3, 16 channels out": "conv3x3_kernel<Tf32, 1>",
        "filter gradient": "filter_gradient_kernel<Tf32, 3, 1>",
    },
    ("conv3x3", "float16"): {
        "conv3x3, 64 channels out": "conv3x3_kernel<half, 4>",
        "conv3x3, 16 channels out": "conv3x3_kernel<half, 1>",
        "filter gradient": "filter_gradient_kernel<half, 3, 1>",
    },
    ("conv_mix", "float32 in TF32"): {
        "forward": "conv_mix_kernel<Tf32, false>",
        "forward with conv1": "conv_mix_kernel<Tf32, true>",
        "backward, pass 1": "conv_mix_backward_kernel<Tf32>",
        "backward, pass 2": "conv_mix_input_kernel<Tf32>",
    },
    ("conv_mix", "float16"): {
        "forward": "conv_mix_kernel<half, false>",
        "backward, pass 1": "conv_mix_backward_kernel<half>",
        "backward, pass 2": "conv_mix_input_kernel<half>",
        "filter gradients, 1x1, 128 threads": "filter_gradient_kernel<half, 1, 2>",
    },
    ("conv_mix_reduce", ""): {
        "float16": "conv_mix_kernel<half, true>",
        "bfloat16": "conv_mix_kernel<bf16, true>",
        "float32": "conv_mix_kernel<float, true>",
    },
    ("esa_cca", "float16, 64 channels"): {
        "moments": "esa_moments_kernel<half>",
        "moments, float32 in TF32": "esa_moments_kernel<Tf32>",
        "finish, 1024 threads": "cca_finish_kernel<half, 8>",
    },
    ("esa", "float32 in TF32"): {
        "reduce": "esa_reduce_kernel<Tf32>",
        "small, 512 threads": "esa_small_kernel<Tf32>",
        "gate": "esa_gate_kernel<Tf32>",
        "gate backward": "esa_gate_backward_kernel<Tf32>",
        "small backward": "esa_small_backward_kernel<Tf32>",
        "input": "esa_input_backward_kernel<Tf32>",
        "weights": "weight_gradient_kernel<Tf32, 9, 4>",
    },
    ("esa", "float16"): {
        "reduce": "esa_reduce_kernel<half>",
        "small, 512 threads": "esa_small_kernel<half>",
        "gate": "esa_gate_kernel<half>",
        "gate backward": "esa_gate_backward_kernel<half>",
        "enlarge": "esa_enlarge_backward_kernel<half>",
        "small backward": "esa_small_backward_kernel<half>",
        "pool": "esa_pool_backward_kernel<half>",
        "input": "esa_input_backward_kernel<half>",
        "weights": "weight_gradient_kernel<half, 9, 4>",
    },
    ("pixel_norm", "float16, 64 channels"): {
        "forward": "pixel_norm_kernel<half, 8>",
        "backward": "pixel_norm_backward_kernel<half, 8>",
    },
    ("pointwise", "float32 in TF32"): {
        "product, 64 channels out": "product_kernel<Tf32, 2, false>",
        "product, 32 channels out": "product_kernel<Tf32, 1, false>",
        "g, 64 channels": "product_kernel<Tf32, 2, true>",
        "weights": "weight_gradient_kernel<Tf32, 16, 1>",
    },
    ("pointwise", "float16"): {
        "product, 64 channels out": "product_kernel<half, 2, false>",
        "product, 32 channels out": "product_kernel<half, 1, false>",
        "g, 64 channels": "product_kernel<half, 2, true>",
        "weights": "weight_gradient_kernel<half, 16, 1>",
    },
    ("pointwise_reduce", ""): {
        "float16, bfloat16": "pointwise_reduce_kernel<half>",
        "float32 in TF32": "pointwise_reduce_kernel<Tf32>",
        "float32 by FMA": "pointwise_reduce_kernel<float>",
    },
    ("upsample", "float16"): {
        "forward, 16 channels": "upsample_kernel<half, 1>",
        "forward, 64 channels": "upsample_kernel<half, 4>",
        "unshuffle": "unshuffle_kernel<half>",
        "d_lr": "lr_gradient_kernel<half>",
    },
    ("upsample", "float32 in TF32"): {
        "forward, 16 channels": "upsample_kernel<Tf32, 1>",
        "forward, 64 channels": "upsample_kernel<Tf32, 4>",
    },
}


def rows_of_the_pages() -> dict[tuple[str, str, str], str]:
    """The registers as they are written, by page, table and row; they stand in the second column."""
    found: dict[tuple[str, str, str], str] = {}
    for page in sorted(PAGES.glob("*_cuda.md")):
        table: str | None = None
        for line in page.read_text().splitlines():
            first, second = ([cell.strip() for cell in line.split("|")] + [""] * 3)[1:3]
            if second == HEADING:
                table = first
            elif not line.startswith("|"):
                table = None
            elif table is not None and not first.startswith("---"):
                row = page.stem.removesuffix("_cuda"), table, first
                assert row not in found
                found[row] = second
            else:
                assert HEADING not in line, f"{page.name}: move the registers into the second column of {line}"
    return found


def test_registers_are_those_of_the_baseline() -> None:
    counts = json.loads(cuda_cubins.BASELINE.read_text())["kernels"]
    kernels = {(*table, row): kernel for table, rows in TABLES.items() for row, kernel in rows.items()}
    expected = {
        row: " / ".join(str(counts[f"{kernel}/sm_{a}"]["registers"]) for a in ARCHITECTURES)
        for row, kernel in kernels.items()
    }
    written = rows_of_the_pages()
    assert written.keys() == expected.keys()
    assert {row: (have, expected[row]) for row, have in written.items() if have != expected[row]} == {}
