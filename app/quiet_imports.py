"""What libraries log of their own build while they are imported is not shown: no user can act on it."""

import logging

# transformers imports torchao, of the extra int8, where it is installed. That names kernels which are for
# other processors, and registers enums that PyTorch by now knows by itself: four lines in every process.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
