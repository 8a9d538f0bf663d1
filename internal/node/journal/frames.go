package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
)

// magic begins every file of the journal. The number is the format's version.
//
// History:
//
//	1  frames of JSON, each the whole state
const magic = "tartarus journal 1\n"

// maxFrame bounds the payload of one frame.
const maxFrame = 256 << 10

const frameHead = 8 // length and CRC-32C, little-endian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendFrame(b []byte, v any) ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return b, err
	}
	if len(payload) > maxFrame {
		return b, errors.New("the entry is too large")
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...), nil
}

// decodeFrames calls each for every whole frame of a file and returns how many
// bytes of it are good. What follows them is a torn write, or damage; each
// says with false that a payload is not good either. A file that does not
// begin with magic has 0 good bytes.
func decodeFrames(b []byte, each func(payload []byte) bool) (good int) {
	if !bytes.HasPrefix(b, []byte(magic)) {
		return 0
	}
	good = len(magic)
	for rest := b[good:]; len(rest) >= frameHead; rest = b[good:] {
		n := binary.LittleEndian.Uint32(rest)
		if n > maxFrame || int(n) > len(rest)-frameHead {
			break
		}
		payload := rest[frameHead : frameHead+n]
		if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(rest[4:]) || !each(payload) {
			break
		}
		good += frameHead + int(n)
	}
	return good
}

// decodeStrict reads one JSON value without unknown fields and nothing behind.
func decodeStrict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows its end")
	}
	return nil
}
