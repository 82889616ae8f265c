"""TensorBoard: what rank 0 writes into the run's folder beside metrics.csv."""

from utils.training import distributed


class Board:
    """A SummaryWriter on rank 0, and nothing on the others.

    first_epoch: the epoch, from 1, that is written next; what an interrupted run wrote of it is dropped.
    """

    def __init__(self, folder, first_epoch=1):
        self.writer = None
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

            self.writer = SummaryWriter(folder, purge_step=first_epoch if first_epoch > 1 else None)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.writer:
            self.writer.close()

    def add_row(self, row, images_per_s):
        """An epoch's row of metrics.csv, and the speed of training."""
        if self.writer:
            for name, value in row.items():
                if name != "epoch":
                    self.writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
            self.writer.add_scalar("train/images_per_s", images_per_s, row["epoch"])
            self.writer.flush()

    def add_image(self, name, image, epoch):
        """image: (3, H, W) in [0, 1]."""
        if self.writer:
            self.writer.add_image(name, image, epoch)
