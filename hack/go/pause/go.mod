module lvm-csi.dev/hack/pause

go 1.26
