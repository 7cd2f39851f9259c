"""Everything that DeepSpeed does, and nothing else: processes, the teacher's hosting, the students' engines and their state.

Two engines, not one. A small student wants ZeRO-0 or 1; a large teacher may have to be sharded over all ranks (ZeRO-3).
The comments name the behaviour of DeepSpeed 0.19 that made the code as it is. What is not used, and why:

* forward hooks on a ZeRO-3 model, which would see released weights and break backward: encoders return q, k, v;
* HfDeepSpeedConfig, and zero.Init as a context, which are global to the process and break fresh transformers models;
* its schedulers (WarmupLR is log-shaped and idle for two steps) and its checkpoints (a teacher engine's crashes, and a
  changed world size needs a conversion): see settings/recipe.py and artifacts/checkpoints.py;
* leaving a ZeRO-3 forward by an exception, after which its engine is lost: what can be refused is refused outside.

What must be settled before DeepSpeed is imported stands in this file: every module of the package is imported after it.
"""

import sys
import types

from pipeline.models.units import settle_accelerator

settle_accelerator()

# DeepSpeed imports its Muon optimizer whichever is used, and with it all of torch's compiler: seconds of a start with
# compile = "none". It gets by these names what no optimizer of ours is, and what it never calls.
for _module, _name in (("muon_optimizer", "MuonWithAuxAdam"), ("original_muon", "muon_update")):
    _stand_in = types.ModuleType(f"deepspeed.runtime.zero.muon.{_module}")
    setattr(_stand_in, _name, type(_name, (), {}))
    sys.modules.setdefault(_stand_in.__name__, _stand_in)
