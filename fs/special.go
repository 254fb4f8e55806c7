package fs

// specialNode is a fifo, socket or device: the kernel opens them itself and
// asks for attributes only.
type specialNode struct{ node }
