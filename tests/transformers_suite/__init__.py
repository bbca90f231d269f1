"""transformers' own common suites on the classes of an export: `make test-transformers-suite`."""

from pretrain.system.light_imports import leave_torchvision_out

leave_torchvision_out()  # before the suites import transformers
