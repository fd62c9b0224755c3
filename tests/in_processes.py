"""What processes of a job tell each other, in those that torchrun started; rank 0 prints JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from mobilenext.data import DeviceBatches, Loader, eval_loader, eval_transform, synthetic
from mobilenext.metrics.classification import score, score_all
from mobilenext.runtime.distributed import MOST_LEFT_OUT, Agreement, process_group

LENGTHS = (1, 7, 64, 65)


class Pixels(nn.Module):
    """A network whose logits are pixels: nothing to learn, and no two images alike."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 7)."""
        return images.flatten(1)[:, :7] * 3


if __name__ == "__main__":
    torch.set_num_threads(1)
    to_device = DeviceBatches([0.5] * 3, [0.25] * 3, torch.device("cpu"))
    transform = eval_transform(16, crop_ratio=1)
    results = {}
    with process_group("cpu", 5) as process:

        def shard(length: int) -> Loader:
            images = synthetic(1, length, 7, 16).val
            rank, ranks = process.rank, process.world_size
            return eval_loader(images, transform, batch_size=4, rank=rank, world_size=ranks)

        for length in LENGTHS:
            results[length] = score(Pixels(), shard(length), to_device, process, length)
        # one rank that wants to end is enough, and no rank is left waiting
        last = process.rank == process.world_size - 1
        networks = {"val": Pixels()}
        given_up = score_all(networks, shard(65), to_device, process, 65, lambda: last)
        results["given up"] = given_up is None
        # each rank's running statistics are its rank
        norm = nn.BatchNorm1d(2)
        for name, unite in (
            ("average", process.average_buffers),
            ("broadcast", process.broadcast_buffers),
        ):
            nn.init.constant_(norm.get_buffer("running_mean"), process.rank)
            unite(norm)
            results[name] = process.gather(norm.get_buffer("running_mean").tolist())
        # gradients of any shape and memory format, by one message
        gradients = [torch.full((2, 3, 2, 2), float(process.rank)), torch.ones(4) * process.rank]
        gradients[0][0, 1, 1, 0] += 4
        gradients[0] = gradients[0].to(memory_format=torch.channels_last)
        process.average(gradients)
        results["means"] = process.gather(
            [float(gradients[0][0, 1, 1, 0]), float(gradients[0][1].max()), float(gradients[1][3])]
        )
        # what all ranks have the same stays as it is, whatever their number
        same = nn.BatchNorm1d(1000)
        nn.init.uniform_(
            same.get_buffer("running_mean"), generator=torch.Generator().manual_seed(0)
        )
        before = same.get_buffer("running_mean").clone()
        process.average_buffers(same)
        results["stays"] = torch.equal(same.get_buffer("running_mean"), before)
        agreement = Agreement(process, requests=2)
        results["agreed"] = [
            agreement.exchange(process.is_main and step == 1, last and step == 2)
            for step in range(4)
        ]
        results["agreed"].append(agreement.agreed())
        # many processes agree now and then, all at the same call, and no request is lost
        seldom, seen = Agreement(process, 1, seconds=3600), []
        for call in range(4 * MOST_LEFT_OUT):
            if seldom.exchange(last and call == 5)[0]:
                seen.append(call)
        results["seldom"] = process.gather(seen)
        # processes that may use the same cores divide them
        results["cpus"] = process.gather(process.cpus)
    if process.is_main:
        print(json.dumps(results))  # noqa: T201
