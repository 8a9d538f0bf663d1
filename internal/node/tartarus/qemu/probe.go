package qemu

// KVMReport is what Probe found out about KVM.
type KVMReport struct {
	Usable bool   `json:"usable"`
	Why    string `json:"why"` // in a sentence, for `doctor`
}
