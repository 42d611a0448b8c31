"""Pure operations on images, records, nets and their files; runs without a cluster."""
