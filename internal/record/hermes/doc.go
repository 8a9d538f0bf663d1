// Package hermes is the logs and metrics of sandboxes: from the guest to the
// caller, live, and to the blob that stays.
//
// A log is one file. Both streams share one byte offset, in the order in which
// their bytes arrived, so a live follower and a later reader get the same
// bytes. Readers read the file and are told when it grew; nothing is kept in
// memory for them, however slow they are. When the log is full, or the disk
// is, delivery ends for all with an entry whose stream is Truncated.
//
// The blob of an ended log is the file as it is. Its format, version 1:
//
//	"tartarus log 1\n"  start (8 bytes, µs since 1970, little-endian)
//	record…
//	record = kind (1 byte) · uvarint µs since the record before
//	         [· uvarint length · data]  · CRC-32C (4 bytes, little-endian)
//	kind   = 1 stdout · 2 stderr · 3 truncated · 4 end, which is the last
//
// Offsets are the sum of the lengths before. Each checksum goes on from the
// one before, so no record can be taken away, changed or moved unseen.
package hermes
