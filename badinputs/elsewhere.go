package badinputs

// Place says where a row is that is no bundle, or of which bundles are only examples.
type Place struct {
	Row  int
	What string
	Want string // code, or what else happens
	Test string // "package Test": the row's number stands in it or above it; "" where there is none
	Why  string // there is none, or no more
}

// Elsewhere are the rows that [Kit.Inputs] cannot make, or not all of.
var Elsewhere = []Place{
	{42, "revoked signer", "24", "verify TestCRLIssuer", ""},
	{43, "revoked intermediate", "24", "verify TestRevokedIntermediate", ""},
	{44, "CRL of a CA that may not sign one", "ignored, 24 where one is required", "verify TestCRLIssuer", ""},
	{45, "CRL of another issuer with the same serial number", "0", "verify TestCRLIssuer", ""},
	{46, "CRL cut off", "ignored", "verify TestCRLIssuer", ""},
	{47, "CRL older than the known one", "ignored", "verify TestCRLIssuer", ""},
	{48, "CRL of a million entries", "31", "verify TestReadCRL", ""},
	{49, "unknown signer first, good one second", "0", "verify TestThreshold", ""},
	{52, "keyring is missing", "32", "update TestNoKeyring", ""},
	{76, "ten thousand random bytes of everything", "a code, or the same content", "bundle TestMutations", ""},
	{77, "every 4 KiB", "20 to 31", "bundle TestEveryTruncation", ""},
	{78, "payload beyond 2 GiB and 4 GiB", "31 plain, each block checked in verity", "bundle TestHuge", ""},
	{81, "the same, and rows 82 to 86 and 90 to 92, in a slot that takes archives (86: with allow-setuid=false)", "31 or 20", "tree TestHostile", ""},
	{87, "more bombs, of each compressor", "refused within a block", "squashfs TestBombs", ""},
	{88, "dictionary of 1.5 GiB", "refused", "squashfs TestBombs", ""},
	{89, "window of 2 GiB", "refused", "squashfs TestBombs", ""},
	{93, "root folder in a loop", "40", "fat TestHostileSticks", ""},
	{93, "root folder of exFAT in a loop", "40", "fat TestHostileExFAT", ""},
	{94, "file in a loop", "40", "fat TestHostileSticks", ""},
	{94, "file of exFAT in a loop", "40", "fat TestHostileExFAT", ""},
	{95, "tables of no sectors", "40", "fat TestHostileSticks", ""},
	{95, "exFAT without table or sectors", "40", "fat TestHostileExFAT", ""},
	{96, "tables of 2^32 sectors", "40", "fat TestHostileSticks", ""},
	{96, "exFAT of 2^63 sectors", "40", "fat TestHostileExFAT", ""},
	{97, "file of 4 GiB on a small stick", "40", "fat TestHostileSticks", ""},
	{97, "exFAT file of 2^64 bytes", "40", "fat TestHostileExFAT", ""},
	{98, "cluster beyond the end", "40", "fat TestHostileSticks", ""},
	{98, "exFAT cluster beyond the end", "40", "fat TestHostileExFAT", ""},
	{99, "sectors of 0 and 32768 bytes", "40", "fat TestHostileSticks", ""},
	{99, "exFAT with sectors of 256 and clusters of 2^255 bytes", "40", "fat TestHostileExFAT", ""},
	{100, "folder that is the root", "passed over", "fat TestHostileSticks", ""},
	{100, "exFAT folder that is the root", "40", "fat TestHostileExFAT", ""},
	{101, "ten thousand files", "40", "fat TestManyFiles", ""},
	{101, "twenty thousand files on exFAT", "40", "fat TestManyExFATFiles", ""},
	{102, "names that deceive", "passed over", "fat TestNames", ""},
	{102, "names on exFAT that deceive, or lack their checksum", "passed over, 40", "fat TestExFATNames", ""},
	{103, "GPT and MBR that contradict themselves", "40", "disk TestHostileTables", ""},
	{104, "stick that is pulled out while it is read", "40", "badinputs TestFickleSticks", ""},
	{105, "medium that fails in the middle", "40", "badinputs TestFickleSticks", ""},
	{106, "medium that shows other bytes the second time", "20 to 40", "badinputs TestFickleSticks", ""},
	{107, "stick that is smaller than it says", "20", "badinputs TestFickleSticks", ""},
	{108, "keyboards, network cards and the like beside the stick", "no driver sees them", "qemu/story TestUSBOthers", ""},
	{109, "two sticks with different bundles", "the newer one", "qemu/story TestBadSticks", ""},
	{110, "another file system under our label", "no file system", "qemu/story TestBadSticks", ""},
	{111, "folder instead of the bundle", "passed over", "fat TestHostileSticks", ""},
	{111, "exFAT folder instead of the bundle", "passed over", "fat TestHostileExFAT", ""},
	{112, "copies of the state record lost", "rebuilt from the seals", "powercut TestNewestLost", ""},
	{113, "newer copy of the record with a wrong checksum", "the older one", "boot/raw TestCommitIsAtomic", ""},
	{114, "TPM that is gone, locked, or another", "", "", "there is no TPM yet"},
	{115, "clock from 1970 to 2106", "updates are installed", "qemu/story TestClock", ""},
	{116, "forty kernel command lines", "what is booted and refused stays the same", "qemu/story TestHostileCmdline", ""},
	{117, "seal of another slot", "30", "slots TestAttest", ""},
	{118, "image that is not the root hash's", "30", "slots TestAttest", ""},
	{119, "both slots below the floor", "rescue", "badinputs TestBelowFloor", ""},
	{120, "keyrings that renew themselves", "the threshold of the one before and of itself, or the old one stays", "powercut TestTrust", ""},
}
