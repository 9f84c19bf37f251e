"""Images to train and judge networks on: the generated stand-in task, and folders of pictures."""

from mvit_kernels.data.digits import StandInTask
from mvit_kernels.data.folder import ImageFolder, image_folder
from mvit_kernels.data.images import Images, evaluation_view, read_image

__all__ = ["ImageFolder", "Images", "StandInTask", "evaluation_view", "image_folder", "read_image"]
