"""Memory and time of the Non-Local block with and without the N x N attention matrix.

    python benchmarks/nonlocal_memory.py [--size 56] [--channels 64] [--batch 16] [--dtype float32] [--json FILE]

Forward and backward of :class:`bustseg.models.NonLocal` against the textbook form (softmax of a held N x N matrix),
each in its own process. Memory is the increase of the peak: of resident memory on a CPU, of allocated memory on a GPU.
Prints a Markdown table and the largest difference of the two outputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from bustseg.models import NonLocal


class Textbook(NonLocal):
    """``x + W(softmax(theta(x)^T phi(x)) g(x))`` as written (Wang et al. 2018)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        attention = torch.softmax(theta.mT @ phi, dim=-1)
        y = (attention @ g.mT).mT
        return x + self.W(y.reshape(x.shape[0], -1, *x.shape[2:]))


BLOCKS = {"scaled_dot_product_attention": NonLocal, "textbook softmax": Textbook}


def peak_rss() -> int:
    """Highest resident memory of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(block: str, args: argparse.Namespace, output: Path) -> dict[str, float]:
    """Run one block in this process; the output of the first pass is saved for comparison."""
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    net = BLOCKS[block](args.channels)
    nn.init.normal_(net.W.weight, std=args.channels**-0.5)  # otherwise the block would be the identity
    net = net.to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(args.batch, args.channels, args.size, args.size).to(
        device, dtype, memory_format=torch.channels_last
    )

    def run(images: torch.Tensor) -> torch.Tensor:
        images = images.detach().requires_grad_()
        y = net(images)
        y.float().square().mean().backward()
        net.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return y.detach()

    run(x[:1, :, :8, :8])  # libraries load and allocate on their first call
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else peak_rss()
    torch.save(run(x).float().cpu(), output)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss()
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        run(x)
        seconds.append(time.perf_counter() - start)
    return {"mib": (peak - before) / 2**20, "seconds": min(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--run", nargs=2, metavar=("BLOCK", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args.run[0], args, Path(args.run[1]))))
        return
    results: dict[str, dict[str, float]] = {}
    outputs = []
    with tempfile.TemporaryDirectory() as folder:
        for index, block in enumerate(BLOCKS):
            output = Path(folder) / f"{index}.pt"
            command = [sys.executable, __file__, *sys.argv[1:], "--run", block, str(output)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[block] = json.loads(done.stdout.splitlines()[-1])
            outputs.append(torch.load(output, weights_only=True))
    difference = (outputs[0] - outputs[1]).abs().max().item()
    print(f"Non-Local, {args.channels} channels at {args.size} x {args.size}, batch {args.batch}, {args.dtype}")
    print("\n| forward and backward | peak memory, MiB | s |\n| --- | --- | --- |")
    for block, result in results.items():
        print(f"| {block} | {result['mib']:.0f} | {result['seconds']:.3f} |")
    first, second = results.values()
    lower, faster = (second[key] / first[key] for key in ("mib", "seconds"))
    print(f"\n{lower:.1f} times less memory, {faster:.1f} times faster")
    print(f"largest difference of the outputs: {difference:.1e}")
    if args.json:
        args.json.write_text(json.dumps({"results": results, "largest difference": difference}, indent=2) + "\n")


if __name__ == "__main__":
    main()
