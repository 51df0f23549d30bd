"""The build on Ray Data: the same steps as the build in one process, by as many machines as a cluster has.

Nothing here imports Ray before a build asks for it.
"""

from indexer.ray.options import RayOptions, ray_options

__all__ = ["RayOptions", "ray_options"]
