package raw

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat/boot"
)

// Trust files lie between the two copies of the record, in areas of their own. There are three, so that one is free
// while one counts and one is on trial. An area begins with a header of 48 bytes: magic, length, SHA-256 of the file.
// Which file counts says the record.
const (
	trustMagic  = "lfbtTRST"
	trustHeader = 48
	trustSize   = 2 << 20
	trustAreas  = 3
)

// The areas of the trust files in the state partition, in bytes from its start.
const (
	TrustStart = 1 << 20
	TrustEnd   = TrustStart + trustAreas*trustSize
)

// area returns what area n holds, nil if that is not a whole trust file.
func (s *Store) area(n int) ([]byte, boot.Hash) {
	at := int64(TrustStart + n*trustSize)
	head := make([]byte, trustHeader)
	if _, err := s.dev.ReadAt(head, at); err != nil || string(head[:8]) != trustMagic {
		return nil, boot.Hash{}
	}
	size := binary.LittleEndian.Uint64(head[8:])
	if size == 0 || size > boot.MaxTrust {
		return nil, boot.Hash{}
	}
	b := make([]byte, size)
	if _, err := s.dev.ReadAt(b, at+trustHeader); err != nil {
		return nil, boot.Hash{}
	}
	sum := sha256.Sum256(b)
	if sum != [32]byte(head[16:]) {
		return nil, boot.Hash{}
	}
	return b, sum
}

// LoadTrust returns the trust file with that SHA-256.
func (s *Store) LoadTrust(file boot.Hash) ([]byte, error) {
	for n := range trustAreas {
		if b, sum := s.area(n); b != nil && sum == file {
			return b, nil
		}
	}
	return nil, fmt.Errorf("trust file %s is not in the state partition", file)
}

// FindTrust returns all trust files that are whole.
func (s *Store) FindTrust() (all [][]byte) {
	for n := range trustAreas {
		if b, _ := s.area(n); b != nil {
			all = append(all, b)
		}
	}
	return all
}

// SaveTrust writes a trust file to an area that holds none of keep, unless it is there already, and flushes. A cut
// before it returns leaves the areas of keep untouched, and the record does not know of the new one.
func (s *Store) SaveTrust(b []byte, keep boot.Trust) (boot.Hash, error) {
	file := boot.Hash(sha256.Sum256(b))
	if len(b) == 0 || len(b) > boot.MaxTrust {
		return file, fmt.Errorf("trust file of %d bytes: 1 to %d are kept", len(b), boot.MaxTrust)
	}
	free := -1
	for n := range trustAreas {
		switch _, sum := s.area(n); {
		case sum == file:
			return file, s.dev.Flush() // a reset may have left it in the disk's cache
		case sum == (boot.Hash{}) || sum != keep.File && sum != keep.Pending:
			free = n
		}
	}
	if free < 0 {
		return file, errors.New("no room for another trust file in the state partition")
	}
	w := make([]byte, (trustHeader+len(b)+511)&^511)
	copy(w, trustMagic)
	binary.LittleEndian.PutUint64(w[8:], uint64(len(b)))
	copy(w[16:], file[:])
	copy(w[trustHeader:], b)
	if _, err := s.dev.WriteAt(w, int64(TrustStart+free*trustSize)); err != nil {
		return file, fmt.Errorf("write trust file: %w", err)
	}
	if err := s.dev.Flush(); err != nil {
		return file, fmt.Errorf("flush trust file: %w", err)
	}
	return file, nil
}
