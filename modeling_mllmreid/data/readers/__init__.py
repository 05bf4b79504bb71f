"""The readers by name.

Each reads the folder of a data set in its published layout, and returns a `DatasetDict` with the columns of the data
contract. A new reader is one function here with the arguments `data_dir` and `problems`.
"""

from collections.abc import Callable

from datasets import DatasetDict

from .caption_sets import read_cuhk_pedes, read_icfg_pedes, read_rstpreid
from .cuhk import read_cuhk02, read_cuhk03, read_cuhk_sysu
from .market1501 import read_dukemtmc, read_market1501, read_occluded_duke, read_personx, read_randperson
from .msmt17 import read_msmt17
from .own_data import read_folders, read_table
from .pair_sets import read_grid, read_ilids, read_prid, read_viper
from .rendered import RENDERED

READERS: dict[str, Callable[..., DatasetDict]] = {
    "market1501": read_market1501,
    "msmt17": read_msmt17,
    "cuhk03": read_cuhk03,
    "dukemtmc": read_dukemtmc,
    "occluded_duke": read_occluded_duke,
    "cuhk_pedes": read_cuhk_pedes,
    "icfg_pedes": read_icfg_pedes,
    "rstpreid": read_rstpreid,
    "randperson": read_randperson,
    "personx": read_personx,
    "cuhk02": read_cuhk02,
    "cuhk_sysu": read_cuhk_sysu,
    "viper": read_viper,
    "prid": read_prid,
    "grid": read_grid,
    "ilids": read_ilids,
    "folders": read_folders,
    "table": read_table,
    **RENDERED,
}
