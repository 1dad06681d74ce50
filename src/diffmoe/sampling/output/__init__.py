"""Images to files: kept in parts while others are drawn, then put together."""

from diffmoe.sampling.output.checks import is_as_recorded
from diffmoe.sampling.output.formats import FORMATS, output_of
from diffmoe.sampling.output.geneval import GenEvalFolder
from diffmoe.sampling.output.pictures import contact_sheet, tile_sheet, to_picture
from diffmoe.sampling.output.place import refuse_place, refuse_unmovable, refuse_unwritable
from diffmoe.sampling.output.records import DrawnPart, ImageRequest, Output, sweep_asides

__all__ = [
    "FORMATS",
    "DrawnPart",
    "GenEvalFolder",
    "ImageRequest",
    "Output",
    "contact_sheet",
    "is_as_recorded",
    "output_of",
    "refuse_place",
    "refuse_unmovable",
    "refuse_unwritable",
    "sweep_asides",
    "tile_sheet",
    "to_picture",
]
