import os

# Many small models: one thread each is fastest, and two test processes do not fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
