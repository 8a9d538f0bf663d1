package guestd

// ErrAgain lets the tests' ports say that nothing can be moved.
var ErrAgain = errAgain
