// Command tartarus-guest is the init of a sandbox's VM.
package main

import "github.com/tartarus-vm/tartarus/internal/guest/guestd"

func main() { guestd.Main() }
