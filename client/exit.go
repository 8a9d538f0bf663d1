package client

import apiv1 "github.com/tartarus-vm/tartarus/api/v1"

// Exit codes that are not the command's own.
const (
	ExitTimeout = 124 // max_duration passed, as timeout(1) says it
	ExitFailed  = 125 // Tartarus refused, failed or lost it, as docker run says it
	ExitKilled  = 137 // it was killed, or went over its memory
	exitSignal  = 128 // and the number of the signal that ended the command
)

// ExitCode is what a program that runs a sandbox in its place exits with: the
// command's own code, 128+n after signal n, and otherwise one of the codes
// above. A sandbox that has not ended, or was refused, is ExitFailed.
func ExitCode(sb *apiv1.Sandbox) int {
	exit := sb.GetExit()
	switch exit.GetCause() {
	case "exited":
		if exit.Code != nil {
			return int(exit.GetCode())
		}
	case "signaled":
		if exit.Signal != nil {
			return exitSignal + int(exit.GetSignal())
		}
	case "max_duration":
		return ExitTimeout
	case "memory", "killed":
		return ExitKilled
	}
	return ExitFailed
}

// Ended reports whether nothing is ahead of a sandbox any more. A state that
// this client does not know is live unless ended_at is set.
func Ended(sb *apiv1.Sandbox) bool {
	switch sb.GetState() {
	case "refused", "succeeded", "failed":
		return true
	}
	return sb.GetEndedAt() != nil
}
