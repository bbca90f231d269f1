"""Uni-X models for lmms-eval: `LMMS_EVAL_PLUGINS=tools.evaluation.lmms_plugin`, then `--model unix`."""
