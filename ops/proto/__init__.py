"""Caffe's messages (`caffe_pb2`, made from `caffe.proto`), read and written as text (`text`) and binary (`binary`)."""
