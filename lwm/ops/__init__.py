"""Array functions that know of no model."""

from lwm.ops.attention import attention as attention
from lwm.ops.blockwise import read_cache as read_cache
from lwm.ops.decode import decode_attention as decode_attention
from lwm.ops.mask import EMPTY as EMPTY, Mask as Mask
