package guestd

// wrap adds context without package fmt, which init does not need otherwise.
func wrap(doing string, err error) error { return &wrapped{doing, err} }

type wrapped struct {
	doing string
	err   error
}

func (w *wrapped) Error() string { return w.doing + ": " + w.err.Error() }
func (w *wrapped) Unwrap() error { return w.err }

// wrapNil is wrap that leaves nil alone.
func wrapNil(doing string, err error) error {
	if err == nil {
		return nil
	}
	return wrap(doing, err)
}
