"""The run directory on disk: layout, atomic writer, safe reader, verifier. The only user of h5py."""
