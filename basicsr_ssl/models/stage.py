"""What all stages share: the network that they start from, its validation, and the file that they leave behind."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from basicsr.utils import get_root_logger
from torch import nn

from basicsr_ssl.api import count_macs, count_params
from basicsr_ssl.checkpoints.store import save_network
from basicsr_ssl.evaluation.evaluate import measure
from basicsr_ssl.models.networks import read_input_network
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.runtime import Run
from basicsr_ssl.tasks import TASKS


class Stage:
    """From one network file to the next.

    A stage of this kind itself is file to file: ``prepare`` makes its result of the network that was read, at once and
    without data. Stages that train are ``ReconstructionModel`` and what derives from it.

    Args:
        opt: the resolved options of the stage.
        run: what is known beside them: processes, folders, fingerprint.

    Raises:
        OSError, ValueError: the network cannot be read, or does not fit the options.
    """

    #: sections of the option file that are this stage's ingredients: it needs them, and no others of that kind
    sections: ClassVar[tuple[str, ...]] = ()
    #: the losses of section ``train`` that it knows
    losses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, opt: Mapping[str, Any], run: Run) -> None:
        self.opt, self.run, self.device = opt, run, run.processes.device
        self.metrics: dict[str, dict[str, float]] = {}  # of the last validation, by test set
        net = read_input_network(opt)
        # how it was pruned, or is being; a later stage inherits it with the network
        self.method: str | None = getattr(net, 'provenance', {}).get('method')
        self.net_g: Any = self.prepare(net).to(self.device)
        self.task = TASKS[self.net_g.task]
        lr_size = tuple(opt['pruning']['lr_size']) if opt.get('pruning') else LR_SIZE
        get_root_logger().info(
            f'{type(self.net_g).__name__}, {self.net_g.spec.form}: '
            f'{count_params(self.net_g, flow=False):,} parameters '
            f'({count_params(self.net_g):,} with the flow network), '
            f'{count_macs(self.net_g, lr_size, flow=False) / 1e9:.2f} G MACs per frame of {lr_size[0]}x{lr_size[1]} '
            f'({count_macs(self.net_g, lr_size) / 1e9:.2f} with it)')

    # ---------------------------------------------------------------- hooks

    def prepare(self, net: Any) -> nn.Module:
        """The network of this stage, made from the one that was read."""
        return net

    def provenance(self) -> dict[str, Any]:
        """What the saved file says about this stage, beyond what all stages say."""
        return {}

    def write_summaries(self, tb_logger: Any, current_iter: int) -> None:
        """Stage-specific TensorBoard entries."""

    def remembered(self) -> dict[str, Any]:
        """What the history of a training (``history``) says beside losses and learning rates: JSON values."""
        return {}

    # ------------------------------------------------------------- the result

    def evaluated_network(self) -> Any:
        """The network that is validated and saved."""
        return self.net_g

    def save_network(self, label: str, iteration: int) -> None:
        """Write ``models/net_g_<label>.safetensors``, on the first process."""
        if not self.run.processes.is_first:
            return
        net = self.evaluated_network()
        save_network(net, self.run.models + f'/net_g_{label}.safetensors', stage=self.run.name,
                     model_type=self.opt['model_type'], method=self.method, iteration=iteration,
                     weights='ema' if net is not self.net_g else 'trained', fingerprint=self.run.fingerprint,
                     parents=dict(self.run.parents), options=_told(self.opt), metrics=self.metrics,
                     **self.provenance())

    def validation(self, dataset: Any, name: str, current_iter: int, tb_logger: Any) -> None:
        """Metrics of one test set, whatever the number of processes; they stand in the log and in the saved file."""
        net = self.evaluated_network()
        training = net.training
        net.eval()
        self.metrics[name] = measure(net, dataset, name, self.opt['val'], self.run, tb_logger, current_iter).metrics
        net.train(training)


def _told(opt: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the file tells them: whether a run was resumed is not part of them."""
    return copy.deepcopy({key: value for key, value in opt.items() if key not in ('auto_resume', 'num_gpu')})
