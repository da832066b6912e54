//! The text column of a parquet file, a few hundred rows at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use ::parquet::basic::Type as PhysicalType;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};

use crate::base::guard::guarded;
use crate::base::{Error, Result};

/// Rows that are decoded at once.
const BATCH: usize = 256;

/// The rows of one file in order.
pub(super) struct ParquetTexts {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    column: usize,
    /// The definition level of a row that is not null; 0 when no row can be.
    present: i16,
    next_group: usize,
    open: Option<ColumnReaderImpl<ByteArrayType>>,
    batch: std::vec::IntoIter<Option<ByteArray>>,
    index: u64,
}

impl ParquetTexts {
    /// Opens `path` and finds the column `field`.
    ///
    /// # Errors
    /// `Io`, or `Malformed` when it is no parquet file or has no such column of strings.
    pub(super) fn open(path: &Path, field: &str) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open the data file", path))?;
        let reader = checked(|| SerializedFileReader::new(file)).map_err(|e| broken(path, &e))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let bad = |found: String| {
            let expected = format!("a column of strings called '{field}'");
            Error::malformed("parquet data", path, expected, found, "name the column with --text-field")
        };
        let columns = schema.columns();
        let Some(column) = columns.iter().position(|c| c.path().string() == field) else {
            let names: Vec<String> = columns.iter().map(|c| c.path().string()).take(20).collect();
            return Err(bad(format!("the columns: {}", names.join(", "))));
        };
        let description = &columns[column];
        if description.physical_type() != PhysicalType::BYTE_ARRAY || description.max_rep_level() > 0 {
            return Err(bad(format!("'{field}' of type {:?}, or repeated", description.physical_type())));
        }
        let present = description.max_def_level();
        Ok(Self {
            path: path.into(),
            reader,
            column,
            present,
            next_group: 0,
            open: None,
            batch: Vec::new().into_iter(),
            index: 0,
        })
    }

    /// The next row that is not null, with its number in the file.
    pub(super) fn next(&mut self) -> Option<Result<(u64, String)>> {
        loop {
            for row in self.batch.by_ref() {
                let index = self.index;
                self.index += 1;
                let Some(bytes) = row else { continue };
                let text = std::str::from_utf8(bytes.data()).map(|text| (index, text.to_owned()));
                return Some(text.map_err(|e| {
                    let found =
                        format!("an invalid byte in row {index}, at byte offset {} of its text", e.valid_up_to());
                    Error::malformed(
                        "parquet data",
                        &self.path,
                        "valid UTF-8",
                        found,
                        "write the column as UTF-8 strings",
                    )
                }));
            }
            match checked(|| self.fill()) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => {
                    // What an error left half read is not read on.
                    (self.open, self.next_group) = (None, usize::MAX);
                    return Some(Err(broken(&self.path, &e)));
                }
            }
        }
    }

    /// Decodes the next batch; false at the end of the file.
    fn fill(&mut self) -> std::result::Result<bool, ParquetError> {
        loop {
            let Some(open) = &mut self.open else {
                if self.next_group >= self.reader.num_row_groups() {
                    return Ok(false);
                }
                let group = self.reader.get_row_group(self.next_group)?;
                self.next_group += 1;
                let column = group.metadata().schema_descr().column(self.column);
                let pages = CheckedPages(group.get_column_page_reader(self.column)?);
                self.open = Some(ColumnReaderImpl::new(column, Box::new(pages)));
                continue;
            };
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let wanted = (self.present > 0).then_some(&mut levels);
            let (rows, _, _) = open.read_records(BATCH, wanted, None, &mut values)?;
            if rows == 0 {
                self.open = None;
                continue;
            }
            let batch: Vec<Option<ByteArray>> = if self.present > 0 {
                let mut values = values.into_iter();
                levels.iter().map(|&level| if level == self.present { values.next() } else { None }).collect()
            } else {
                values.into_iter().map(Some).collect()
            };
            self.batch = batch.into_iter();
            return Ok(true);
        }
    }
}

/// Pages whose dictionaries hold as many values as they say: the crate makes room for them first.
struct CheckedPages(Box<dyn PageReader>);

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.0.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            && *num_values as usize > buf.len() / size_of::<u32>()
        {
            let why = format!("a dictionary of {num_values} texts in {} bytes", buf.len());
            return Err(ParquetError::General(why));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.0.skip_next_page()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// The crate's decoders panic on some kinds of damage.
fn checked<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    guarded(work).unwrap_or_else(|panic| Err(ParquetError::General(panic)))
}

fn broken(path: &Path, error: &ParquetError) -> Error {
    Error::malformed(
        "parquet data",
        path,
        "a whole parquet file",
        error.to_string(),
        "download or write the file again; a cut-off download cannot be read",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::parquet::basic::Compression;
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;

    use super::*;

    fn write(path: &Path, schema: &str, groups: &[Vec<Option<String>>], nullable: bool) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        for rows in groups {
            let mut group = writer.next_row_group().unwrap();
            while let Some(mut column) = group.next_column().unwrap() {
                let values: Vec<ByteArray> = rows.iter().flatten().map(|t| ByteArray::from(t.as_str())).collect();
                let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
                let levels = nullable.then_some(levels.as_slice());
                column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    fn read(path: &Path) -> Vec<(u64, String)> {
        let mut texts = ParquetTexts::open(path, "text").unwrap();
        std::iter::from_fn(|| texts.next()).map(|row| row.unwrap()).collect()
    }

    #[test]
    fn rows_come_in_order_over_batches_and_groups_and_nulls_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let row = |i: usize| (i % 7 != 3).then(|| format!("text \u{e9} {i}"));
        let groups = [(0..700).map(row).collect::<Vec<_>>(), (700..710).map(row).collect()];
        write(&path, "message m { optional binary text (UTF8); }", &groups, true);
        let expected: Vec<(u64, String)> = (0..710).filter_map(|i| Some((i as u64, row(i)?))).collect();
        assert_eq!(read(&path), expected);
    }

    #[test]
    fn a_required_column_reads_and_a_missing_one_lists_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        write(
            &path,
            "message m { required binary text (UTF8); }",
            &[vec![Some("a".into()), Some(String::new())]],
            false,
        );
        assert_eq!(read(&path), [(0, "a".into()), (1, String::new())]);
        let error = ParquetTexts::open(&path, "body").err().unwrap().to_string();
        assert!(error.contains("columns: text"), "{error}");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(ParquetTexts::open(&path, "text").is_err());
    }
}
