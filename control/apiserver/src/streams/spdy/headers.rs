//! Blocks of headers: compressed by one zlib stream a direction, with a dictionary that both know.
//! SPDY/3.1, section 2.6.10.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::Malformed;

/// Bytes that a block may have when it is unpacked: a client of ours sends a hundred.
const BLOCK_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: u32 = 128;

/// Names in lower case, values as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

/// Words and phrases of HTTP that a block refers to rather than to have them.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    const COUNTED: &str = "options head post put delete trace accept accept-charset accept-encoding \
        accept-language accept-ranges age allow authorization cache-control connection content-base \
        content-encoding content-language content-length content-location content-md5 content-range \
        content-type date etag expect expires from host if-match if-modified-since if-none-match \
        if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
        proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
        user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
        public set-cookie keep-alive origin";
    const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415\
        416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
        Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
        Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
        Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
        application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
        deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::new();
    for word in COUNTED.split_whitespace() {
        let word = word.replace('_', " ");
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(REST.as_bytes());
    bytes
});

/// Unpacks the blocks of one direction, in their order.
pub struct Reader(Decompress);

impl Reader {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// # Errors
    /// When the block is damaged or unpacks to more than a client has to say.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.unpack(block)?)
    }

    fn unpack(&mut self, block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        let mut chunk = [0; 4096];
        let mut rest = block;
        loop {
            let (read, made) = (self.0.total_in(), self.0.total_out());
            let status = match self.0.decompress(rest, &mut chunk, FlushDecompress::Sync) {
                Ok(status) => status,
                Err(e) if e.needs_dictionary().is_some() => {
                    rest = &rest[(self.0.total_in() - read) as usize..];
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| Malformed("a header block has another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Malformed("a header block cannot be unpacked")),
            };
            let (read, made) =
                ((self.0.total_in() - read) as usize, (self.0.total_out() - made) as usize);
            rest = &rest[read..];
            out.extend_from_slice(&chunk[..made]);
            if out.len() > BLOCK_BYTES_MAX {
                return Err(Malformed("a header block is too large"));
            }
            match status {
                Status::StreamEnd => return Err(Malformed("the headers' zlib stream ended")),
                // Full chunks may have more behind them, though all was read.
                _ if made == chunk.len() => {}
                _ if rest.is_empty() || (read == 0 && made == 0) => return Ok(out),
                _ => {}
            }
        }
    }
}

fn parse(mut bytes: &[u8]) -> Result<Headers, Malformed> {
    let count = number(&mut bytes)?;
    if count > HEADERS_MAX {
        return Err(Malformed("a header block has too many headers"));
    }
    let mut headers = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let name = text(&mut bytes)?;
        headers.push((name.to_ascii_lowercase(), text(&mut bytes)?));
    }
    Ok(Headers(headers))
}

fn number(bytes: &mut &[u8]) -> Result<u32, Malformed> {
    let (number, rest) =
        bytes.split_first_chunk().ok_or(Malformed("a header block ends too early"))?;
    *bytes = rest;
    Ok(u32::from_be_bytes(*number))
}

fn text(bytes: &mut &[u8]) -> Result<String, Malformed> {
    let length = number(bytes)? as usize;
    let (text, rest) =
        bytes.split_at_checked(length).ok_or(Malformed("a header block ends too early"))?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).map_err(|_| Malformed("a header is not UTF-8"))
}

/// Packs the blocks of one direction. Without the dictionary, which is allowed: what a server of
/// Kubernetes has to say in headers is nothing.
pub struct Writer(Compress);

impl Writer {
    pub fn new() -> Self {
        Self(Compress::new(Compression::fast(), true))
    }

    /// A block without headers.
    pub fn empty(&mut self) -> Vec<u8> {
        self.pack(&0_u32.to_be_bytes())
    }

    fn pack(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        self.0
            .compress_vec(bytes, &mut out, FlushCompress::Sync)
            .expect("a Vec with room takes a small block");
        out
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a client sends: with the dictionary.
    pub struct ClientWriter(Compress);

    impl ClientWriter {
        pub fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&DICTIONARY).unwrap();
            Self(compress)
        }

        pub fn pack(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(n, v)| [n, v]) {
                plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            self.raw(&plain)
        }

        pub fn raw(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(plain.len() + 256);
            self.0.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
            out
        }
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        let mut check = flate2::Compress::new(Compression::fast(), true);
        assert_eq!(
            (DICTIONARY.len(), check.set_dictionary(&DICTIONARY).unwrap()),
            (1423, 0xe3c6_a7c2)
        );
    }

    #[test]
    fn blocks_refer_to_what_was_before() {
        let (mut client, mut reader) = (ClientWriter::new(), Reader::new());
        let first = client.pack(&[("streamtype", "error"), ("requestid", "0")]);
        let second = client.pack(&[("streamtype", "data"), ("requestid", "0")]);
        assert!(second.len() < first.len());
        assert_eq!(reader.read(&first).unwrap().get("streamtype"), "error");
        let headers = reader.read(&second).unwrap();
        assert_eq!((headers.get("streamtype"), headers.get("port")), ("data", ""));
    }

    #[test]
    fn what_the_server_packs_can_be_unpacked() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        for _ in 0..3 {
            assert_eq!(reader.read(&writer.empty()).unwrap(), Headers::default());
        }
    }

    #[test]
    fn hostile_blocks() {
        #[track_caller]
        fn check(block: impl FnOnce(&mut ClientWriter) -> Vec<u8>, why: &'static str) {
            let block = block(&mut ClientWriter::new());
            assert_eq!(Reader::new().read(&block), Err(Malformed(why)));
        }
        let early = "a header block ends too early";
        check(|_| vec![0xff; 40], "a header block cannot be unpacked");
        check(|_| vec![], early);
        check(|c| c.raw(&[0, 0, 0, 9]), early);
        check(|c| c.raw(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']), early);
        check(|c| c.raw(&[0xff; 4]), "a header block has too many headers");
        check(|c| c.pack(&[("a", &"x".repeat(1 << 20))]), "a header block is too large");
    }
}
