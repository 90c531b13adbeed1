"""A training run without files, for comparisons."""

from torch import nn
from torch.utils.data import DataLoader

from data import Batch
from data.sources import build_loader, open_photos
from train import train_step, validate
from utils.config import Config
from utils.device import Arithmetic
from utils.training.progress import FailureLog
from utils.training.schedule import plan_epochs, set_learning_rates
from utils.training.start import new_state
from utils.training.state import TrainingState


def train_briefly(
    config: Config, generator: nn.Module | None = None
) -> tuple[TrainingState, dict[str, float], "DataLoader[Batch]"]:
    """Train `config.epochs` epochs, of `generator` if it is given; return the state, validation figures and loader."""
    failures, arithmetic = FailureLog(), Arithmetic(config.precision)
    photos, valid_photos = open_photos(config, failures)
    loader, batches = build_loader(config, photos, config.batch_size, arithmetic)
    valid_loader, _ = build_loader(config, valid_photos, config.batch_size, arithmetic)
    state = new_state(config, arithmetic, photos=[])
    if generator is not None:
        state = TrainingState(config, arithmetic.place(generator), state.discriminator, photos=[])
    plan, steps = plan_epochs(config, len(photos)), 0
    for epoch in plan:
        batches.epoch = epoch.number
        for batch in loader:
            set_learning_rates(state, plan, steps)
            train_step(state, batch, arithmetic, adversarial=epoch.is_adversarial)
            steps += 1
    figures, _ = validate(state.released, valid_loader, arithmetic, failures)
    return state, figures, valid_loader
